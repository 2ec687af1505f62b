"""The names and texts of the report, from the file that holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.cifar.settings import read_toml
from benchmarks.common.tables import paragraph

TEXTS = read_toml(Path(__file__).with_suffix(".toml"))


def title(name: str) -> str:
    """The title of a method or an init in the report."""
    return str(TEXTS["titles"].get(name, name))


def note(name: str, **values: Any) -> list[str]:
    """The paragraph of this name, with values in place of its braces."""
    return paragraph(TEXTS["notes"][name].format(**values))
