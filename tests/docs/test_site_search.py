"""The documentation's own check that the search of the site answers what people ask."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cifar.settings import read_toml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {
    "index": "Box\n===\n\n.. toctree::\n\n   open\n   close\n",
    "open": "Opening\n=======\n\n.. index:: lid\n\nLift it.\n",
    "close": "Closing\n=======\n\nPress it.\n",
}


@pytest.fixture
def warnings_of(tmp_path):
    """What a build of a small site warns of that is asked these questions."""
    pytest.importorskip("sphinx")
    if shutil.which("node") is None:
        pytest.skip("the search runs in Node.js")

    def build(**questions):
        source = tmp_path / "docs"
        source.mkdir()
        path = [str(DOCS / "_ext"), str(ROOT)]
        (source / "conf.py").write_text(
            f'import sys\n\nsys.path[:0] = {path}\nextensions = ["questions"]\n'
        )
        lines = (f'{name} = "{page}"\n' for name, page in questions.items())
        (source / "questions.toml").write_text("".join(lines))
        for name, text in PAGES.items():
            (source / f"{name}.rst").write_text(text)
        command = [
            sys.executable,
            "-m",
            "sphinx",
            "-q",
            "-W",
            "-b",
            "html",
            source,
            tmp_path / "html",
        ]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr

    return build


def test_words_of_a_page_and_of_its_index_lead_there(warnings_of):
    assert warnings_of(opening="open", lift="open", lid="open", press="close") == ""


def test_question_that_leads_elsewhere_is_reported(warnings_of):
    found = warnings_of(press="open")
    assert "the search for 'press' leads to ['close'], not to open" in found


def test_every_question_names_a_page():
    questions = read_toml(DOCS / "questions.toml")
    assert len(questions) >= 20
    scripts = {f"generated/{path.parent.name}/{path.stem}" for path in DOCS.glob("*/*.py")}
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")}
    assert set(questions.values()) <= pages | scripts
