"""What the report calls things and says of them, from the file that holds its texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.cifar.settings import read_toml
from benchmarks.common.tables import paragraph

TEXTS = read_toml(Path(__file__).with_suffix(".toml"))


def title(name: str) -> str:
    """A method or an init as the report writes it."""
    return str(TEXTS["titles"].get(name, name))


def note(name: str, **values: Any) -> list[str]:
    """A paragraph of that name with values in the place of its braces."""
    return paragraph(TEXTS["notes"][name].format(**values))
