"""The README says what the results say, and leads nowhere that isn't there."""

import re
from pathlib import Path

import pytest

from benchmarks.readme import rewritten

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
LINK = re.compile(r"\]\(([^)\s]+)\)")
REMEDY = "write it again with: python benchmarks/readme.py"


def test_the_readme_shows_the_committed_results():
    readme = README.read_text(encoding="utf-8")
    assert rewritten(readme) == readme, f"README.md is stale; {REMEDY}"


def test_a_readme_without_a_place_for_a_table_is_refused():
    readme = README.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="results:overhead"):
        rewritten(readme.replace("<!-- end of results:overhead -->", ""))


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_to_files_lead_to_files(name):
    links = LINK.findall((ROOT / name).read_text(encoding="utf-8"))
    targets = [link.partition("#")[0] for link in links if "://" not in link]
    assert [target for target in targets if not (ROOT / target).exists()] == []
