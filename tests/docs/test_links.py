"""Links between pages jump to the right heading in the repository too, not on the site only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: The folders whose pages the build makes.
GENERATED = {"generated", "reports"}
PAGES = [
    page
    for page in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
    if GENERATED.isdisjoint(page.parts)
]
BLOCK = re.compile(r"^(`{3,}).*?^\1", flags=re.DOTALL | re.MULTILINE)
#: The start of links to GitHub's own pages of the repository, whoever owns it.
GITHUB = "../../actions"
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", flags=re.MULTILINE)
ROLE = re.compile(r"\{[^}]*\}`([^`<]*?)(?: *<[^`]*)?`")


def anchors(page: Path) -> set[str]:
    """The anchors that code hosts give the headings of a page."""
    headings = HEADING.findall(BLOCK.sub("", page.read_text(encoding="utf-8")))
    words = (re.sub(r"[^\w\- ]", "", ROLE.sub(r"\1", heading).lower()) for heading in headings)
    return {word.strip().replace(" ", "-") for word in words}


def links(page: Path) -> Iterator[tuple[Path, str]]:
    for link in LINK.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        target, _, anchor = link.partition("#")
        is_outside = ":" in link or target.startswith(GITHUB)
        # The reference entries of objects have dotted anchors, which only the site has.
        is_made = not GENERATED.isdisjoint(Path(target).parts)
        if not (is_outside or is_made) and "." not in anchor:
            yield page.parent / target if target else page, anchor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_have_a_target_in_the_repository(page: Path) -> None:
    for target, anchor in links(page):
        assert target.exists(), target
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{target}#{anchor}"
