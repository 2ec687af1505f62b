"""The base of all sections of a preset file, and the messages for mistakes in them."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class ProtocolError(ValueError):
    """A wrong preset or option; the message says what would be right."""


class Section(BaseModel):
    """A table of a preset file: unknown keys and values of a wrong type raise an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=Section)


def later(default: Any) -> Any:
    """A setting that is newer than the first results; its default changes no run's name."""
    return Field(default, exclude_if=lambda value: value == default)


def build(section: type[Model], table: Mapping[str, Any]) -> Model:
    """A section from a table of a TOML file."""
    try:
        # In JSON mode a list may be a tuple, and no other type is converted.
        return section.model_validate_json(json.dumps(table, default=str))
    except ValidationError as error:
        # A typo makes a setting unknown, and another one missing.
        errors = sorted(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        raise ProtocolError(_words(section, errors[0])) from None


def read_toml(path: Path, parse_float: Callable[[str], Any] = float) -> dict[str, Any]:
    """The table in a TOML file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"), parse_float=parse_float)
    except UnicodeDecodeError as error:
        raise ProtocolError(f"{path}: {error}; a TOML file has to be UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ProtocolError(f"{path}: {error}") from None


def parse_value(text: str) -> Any:
    """The value of ``text`` in a TOML file; bare words are strings.

    Example:
        >>> parse_value("5"), parse_value("5e-4"), parse_value("true"), parse_value("digits")
        (5, 0.0005, True, 'digits')
    """
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def meant(name: str, known: Mapping[str, Any] | list[str]) -> str:
    """A hint for a mistyped name: the most similar known name, and all known names."""
    close = difflib.get_close_matches(name, list(known), 1)
    hint = f"did you mean {close[0]!r}? It" if close else "it"
    return f"{hint} must be one of {', '.join(known)}"


def _words(section: type[Section], error: Any) -> str:
    """The message for one mistake: the setting, what would be right, and the value."""
    place = [part for part in error["loc"] if isinstance(part, str)]
    name = ".".join(place)
    if error["type"] == "extra_forbidden":
        for part in place[:-1]:
            section = _section_in(section.model_fields[part].annotation)
        known = list(section.model_fields)
        return f"unknown setting {name!r}; {meant(place[-1], known)}"
    if error["type"] == "missing":
        return f"setting {name!r} is missing"
    message = str(error["msg"]).removeprefix("Value error, ").removeprefix("Input ")
    if error["type"] == "value_error":
        return f"{name}: {message}" if name else message
    return f"{name} {message}, got {error['input']!r}"


def _section_in(annotation: Any) -> Any:
    """The section in ``Section``, ``Section | None`` or ``tuple[Section, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)
