"""TOML tables and the dataclasses that are made of them, every name and type checked."""

from __future__ import annotations

import dataclasses
import math
import sys
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Section = TypeVar("Section")
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text in quotes"}


class ProtocolError(ValueError):
    """A preset file that does not say what a protocol needs."""


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file.

    Raises:
        ProtocolError: If it is not TOML.
    """
    with path.open("rb") as file:
        try:
            table: dict[str, Any] = tomllib.load(file)
        except tomllib.TOMLDecodeError as error:
            raise ProtocolError(f"{path}: {error}") from None
    return table


def parse_value(text: str) -> Any:
    """What ``text`` means in a TOML file; bare words are text.

    Example:
        >>> parse_value("5"), parse_value("5e-4"), parse_value("true"), parse_value("digits")
        (5, 0.0005, True, 'digits')
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def build(section: type[Section], table: Any, place: str = "") -> Section:
    """An instance of a dataclass from a TOML table.

    Args:
        section: The dataclass.
        table: What the file has for it.
        place: Where in the file that is, such as ``"training."``, for messages.

    Raises:
        ProtocolError: If a setting is unknown, missing or of another type.
    """
    if not isinstance(table, dict):
        raise ProtocolError(f"{section.__name__} must be a table, got {table!r}")
    hints = typing.get_type_hints(section)
    fields = {field.name: field for field in dataclasses.fields(section)}  # type: ignore[arg-type]
    unknown = sorted(table.keys() - fields.keys())
    if unknown:
        raise ProtocolError(f"unknown setting {unknown[0]!r}; it may be one of {sorted(fields)}")
    values = {}
    for name, field in fields.items():
        if name in table:
            values[name] = _convert(f"{place}{name}", table[name], hints[name])
        elif field.default is dataclasses.MISSING:
            raise ProtocolError(f"setting {name!r} of {section.__name__} is missing")
    return section(**values)


def check_name(setting: str, value: str, known: tuple[str, ...]) -> None:
    """Raise an error that lists what is known, if ``value`` isn't."""
    if value not in known:
        raise ProtocolError(f"{setting} takes one of {', '.join(known)}, got {value!r}")


def check_count(setting: str, value: int | None, smallest: int = 1) -> None:
    """Raise an error if ``value`` is less than the smallest possible. None stands for no value."""
    if value is not None and value < smallest:
        raise ProtocolError(f"{setting} must be at least {smallest}, got {value!r}")


def check_share(
    setting: str, value: float | None, *, zero: bool = False, one: bool = False
) -> None:
    """Raise an error if ``value`` is not between 0 and 1. None stands for no value.

    Args:
        setting: Its name.
        value: Its value.
        zero: Whether it may be 0.
        one: Whether it may be 1.
    """
    if value is None or 0.0 < value < 1.0 or (zero and value == 0.0) or (one and value == 1.0):
        return
    interval = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
    raise ProtocolError(f"{setting} must be in {interval}, got {value!r}")


def check_positive(setting: str, value: float, *, zero: bool = False) -> None:
    """Raise an error if ``value`` is not finite and above 0, or 0 where that is possible."""
    if not (0.0 < value < math.inf or (zero and value == 0.0)):
        bound = "at least 0" if zero else "above 0"
        raise ProtocolError(f"{setting} must be {bound} and finite, got {value!r}")


def _convert(name: str, value: Any, hint: Any) -> Any:
    accepted = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if dataclasses.is_dataclass(accepted[0]):
        return build(typing.cast("type[Any]", accepted[0]), value, f"{name}.")
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ProtocolError(f"{name} must be a list, got {value!r}")
        kind = typing.get_args(hint)[0]
        each = name if dataclasses.is_dataclass(kind) else f"each of {name}"
        return tuple(_convert(each, item, kind) for item in value)
    if float in accepted and type(value) is int:
        return float(value)
    if type(value) not in accepted:
        words = " or ".join(WORDS[kind] for kind in accepted if kind in WORDS)
        raise ProtocolError(f"{name} must be {words}, got {value!r}")
    return value
