"""The documentation's own check that everything public is in the reference."""

import importlib
import sys
from io import StringIO
from pathlib import Path

import pytest

application = pytest.importorskip("sphinx.application")

EXTENSIONS = Path(__file__).parents[2] / "docs" / "_ext"

CONF = """
extensions = ["completeness", "sphinx.ext.autodoc", "sphinx.ext.autosummary"]
completeness_modules = ["{package}"]
"""

INDEX = """
Reference
=========

.. currentmodule:: {package}

.. autosummary::

   Box
   double

.. autoclass:: Box
   :members: grow

.. autofunction:: double
"""

PACKAGE = '''
__all__ = ["Box", "double"]


class Box:
    """A box.

    Args:
        size: how large, in metres.

    Example:
        >>> Box(3).grow(2)
        5
    """

    def __init__(self, size):
        self.size = size

    def grow(self, by):
        """Return the size of a box that is larger by so many metres."""
        return self.size + by


def double(number):
    """Return twice a number.

    Args:
        number: which.

    Example:
        >>> double(2)
        4
    """
    return 2 * number
'''


@pytest.fixture
def warnings_of(tmp_path, monkeypatch):
    """The warnings of a build of a small project, in which the given texts are replaced."""
    package = f"documented_{tmp_path.name}"
    monkeypatch.syspath_prepend(str(EXTENSIONS))
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("completeness", "docstrings", "public_names"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def build(page=("", ""), code=("", "")):
        (tmp_path / f"{package}.py").write_text(PACKAGE.replace(*code))
        source = tmp_path / "docs"
        source.mkdir()
        (source / "conf.py").write_text(CONF.format(package=package))
        (source / "index.rst").write_text(INDEX.format(package=package).replace(*page))
        importlib.invalidate_caches()
        complaints = StringIO()
        application.Sphinx(
            source, source, tmp_path, tmp_path, "dummy", status=None, warning=complaints
        ).build()
        return complaints.getvalue().replace(package, "package")

    return build


def test_complete_reference_gives_no_warning(warnings_of):
    assert warnings_of() == ""


def test_name_that_no_page_documents_is_reported(warnings_of):
    found = warnings_of(page=(".. autofunction:: double", ""))
    assert "package.double is public and not in the reference" in found


def test_name_that_the_overview_leaves_out_is_reported(warnings_of):
    found = warnings_of(page=("   double\n", ""))
    assert "package.double is public and not in the overview" in found
    assert "not in the reference" not in found


def test_method_that_no_page_documents_is_reported(warnings_of):
    found = warnings_of(page=("   :members: grow\n", ""))
    assert "package.Box.grow is public and not in the reference" in found


def test_method_without_a_docstring_is_reported(warnings_of):
    docstring = '        """Return the size of a box that is larger by so many metres."""\n'
    assert "package.Box.grow has no docstring" in warnings_of(code=(docstring, ""))


def test_function_without_an_example_is_reported(warnings_of):
    example = "\n    Example:\n        >>> double(2)\n        4\n"
    found = warnings_of(code=(example, ""))
    assert "package.double has no example in its docstring" in found


@pytest.mark.parametrize(
    ("described", "complaint"),
    [
        ("        number: which.\n", "package.double does not describe 'number'"),
        ("        size: how large, in metres.\n", "package.Box does not describe 'size'"),
    ],
)
def test_argument_that_is_not_described_is_reported(warnings_of, described, complaint):
    assert complaint in warnings_of(code=(described, ""))


def test_attribute_that_is_not_described_is_reported(warnings_of):
    found = warnings_of(code=("    def __init__", "    colour: str\n\n    def __init__"))
    assert "package.Box.colour is not described in the docstring of its class" in found
