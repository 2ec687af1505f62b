"""The README says what the results say, and its loop runs."""

import re
import runpy
from pathlib import Path

import pytest

from benchmarks import picture
from benchmarks.readme import COMPARED, compared_text, main, rewritten
from sparseopt import SparseOptimizer

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
LOOP = re.compile(r"## The loop\n\n```python\n(.*?)```", re.DOTALL)
REMEDY = "write it again with: python benchmarks/readme.py"


def test_readme_shows_the_committed_results():
    readme = README.read_text(encoding="utf-8")
    assert rewritten(readme) == readme, f"README.md is stale; {REMEDY}"


@pytest.mark.parametrize(("options", "status"), [(["--help"], "0"), (["--unknown"], "2")])
def test_readme_is_not_written_by_help_or_by_a_wrong_option(monkeypatch, options, status):
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: pytest.fail("it writes"))
    with pytest.raises(SystemExit, match=status):
        main(options)


@pytest.mark.parametrize("theme", picture.THEMES)
def test_picture_shows_the_committed_results(theme):
    drawn = picture.path_of(theme).read_text(encoding="utf-8")
    said = re.search(r"<dc:description>(.*?)</dc:description>", drawn, re.DOTALL)
    assert said[1] == picture.best_source().words, f"the picture is stale; {REMEDY}"


def test_readme_without_a_place_for_a_table_is_refused():
    readme = README.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="results:gains"):
        rewritten(readme.replace("<!-- end of results:gains -->", ""))


def test_loop_of_the_readme_runs_as_it_is_pasted(capsys):
    (code,) = LOOP.findall(README.read_text(encoding="utf-8"))
    assert len(list(filter(str.strip, code.splitlines()))) <= 13
    names = {}
    exec(compile(code, README, "exec"), names)
    optimizer, model = names["optimizer"], names["model"]
    assert isinstance(optimizer, SparseOptimizer)
    assert optimizer.density == pytest.approx(0.1, abs=0.001)
    assert sum(record.grown for record in optimizer.history) > 0
    live = {layer.name: layer.live for layer in optimizer.layers}
    assert {name: int((model.get_parameter(name) != 0).sum()) for name in live} == live
    assert "total" in capsys.readouterr().out


def test_links_of_a_release_lead_into_the_released_repository():
    pytest.importorskip("hatchling", reason="installed by builds alone")
    absolute = runpy.run_path(str(ROOT / "hatch_build.py"))["absolute"]
    text = absolute(README.read_text(encoding="utf-8"), "https://example.org/a/b")
    assert "](https://example.org/a/b/blob/main/docs/start.md)" in text
    assert "(https://example.org/a/b/actions/workflows/tests.yml/badge.svg)" in text
    assert 'src="https://example.org/a/b/raw/main/docs/_static/' in text
    assert re.findall(r"""(?:\]\(|src="|srcset=")(?!https://)[^)"]*""", text) == []


def test_every_cell_of_the_comparison_is_linked_to_its_proof():
    _, _, *rows = compared_text().splitlines()
    cells = [cell.strip() for row in rows for cell in row.strip("|").split("|")[1:]]
    assert len(cells) > 50
    assert [cell for cell in cells if not re.fullmatch(r"\[[^]]+\]\([^)]+\)", cell)] == []


def test_links_within_the_page_of_the_table_lead_there_from_the_readme():
    text = COMPARED.read_text(encoding="utf-8")
    assert "](#trials)" in text
    assert "](docs/moving/compared.md#trials)" in compared_text()
