"""Every build of the documentation runs the tutorials and pictures."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[2]

SOUND = '''
"""
A page
======
"""

print(6 * 7)
'''

# The documentation of a test has the galleries' configuration of the real one.
CONF = f"""
import runpy

real = runpy.run_path({str(ROOT / "docs" / "conf.py")!r})
extensions = ["sphinx_gallery.gen_gallery"]
exclude_patterns = real["exclude_patterns"]
sphinx_gallery_conf = real["sphinx_gallery_conf"]
"""


def build(folder: Path, script: str) -> subprocess.CompletedProcess:
    """Build documentation with one tutorial and one picture that is sound."""
    docs = folder / "docs"
    for name, text in {
        "conf.py": CONF,
        "index.rst": "Test\n====\n\n.. toctree::\n   :glob:\n\n   generated/*/*\n",
        "tutorials/GALLERY_HEADER.rst": "Tutorials\n=========\n",
        "tutorials/tutorial.py": script.lstrip(),
        "gallery/GALLERY_HEADER.rst": "Gallery\n=======\n",
        "gallery/picture.py": SOUND.lstrip(),
    }.items():
        (docs / name).parent.mkdir(parents=True, exist_ok=True)
        (docs / name).write_text(text, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-b", "html", docs, folder / "html"],
        env={**os.environ, "MPLBACKEND": "agg"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.fixture(autouse=True)
def _needs_the_docs_extra():
    pytest.importorskip("sphinx_gallery")


def test_output_of_a_tutorial_is_on_its_page(tmp_path):
    done = build(tmp_path, SOUND)
    assert done.returncode == 0, done.stdout
    page = tmp_path / "html" / "generated" / "tutorials" / "tutorial.html"
    assert "42" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("last_line", "said"),
    [
        ("assert 1 + 1 == 3", "AssertionError"),
        ("import warnings; warnings.warn('look here')", "UserWarning: look here"),
    ],
    ids=["error", "warning"],
)
def test_tutorial_that_fails_or_warns_fails_the_build(tmp_path, last_line, said):
    done = build(tmp_path, SOUND + last_line + "\n")
    assert done.returncode != 0
    assert said in done.stdout


def test_pages_are_made_anew_when_the_library_has_changed_and_only_then(tmp_path):
    path = ROOT / "docs" / "_ext" / "fresh_galleries.py"
    spec = importlib.util.spec_from_file_location("fresh_galleries", path)
    fresh_galleries = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh_galleries)

    library, docs = tmp_path / "sparseopt" / "layers.py", tmp_path / "docs"
    page = docs / "generated" / "tutorials" / "tutorial.rst"
    library.parent.mkdir()
    page.parent.mkdir(parents=True)

    def is_kept() -> bool:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text("made")
        fresh_galleries.discard_stale_pages(SimpleNamespace(srcdir=docs))
        return page.exists()

    library.write_text("density = 0.1")
    assert not is_kept()  # nobody knows what it was made from
    assert is_kept()
    library.write_text("density = 0.2")
    assert not is_kept()
    assert is_kept()


def test_script_runs_by_itself_from_any_folder(tmp_path):
    script = ROOT / "docs" / "gallery" / "accuracy_and_flops.py"
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={**os.environ, "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "REDUCED" in done.stdout
