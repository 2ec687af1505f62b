"""What the report calls things and says of them, from the file that holds its texts."""

from __future__ import annotations

import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

from benchmarks.common.tables import paragraph

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def read_toml(name: str) -> dict[str, Any]:
    """A file beside this one; as floats, 0.20 would come back as 0.2."""
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    return tomllib.loads(text, parse_float=Decimal)


TEXTS = read_toml("texts.toml")


def title(name: str) -> str:
    """A method or an init as the report writes it."""
    return str(TEXTS["titles"].get(name, name))


def note(name: str, **values: Any) -> list[str]:
    """A paragraph of that name with values in the place of its braces."""
    return paragraph(TEXTS["notes"][name].format(**values))
