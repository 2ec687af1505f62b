"""Preset files: the shipped ones, those of the user's, and changes on the command line."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cifar.config import WORDING, Protocol
from benchmarks.cifar.settings import ProtocolError, build, meant, parse_value, read_toml

PRESET_DIR = Path(__file__).with_name("presets")
PRESETS = ("smoke", "cpu", "paper", "resnet-50")


@dataclass(frozen=True)
class Change:
    """One ``--set``: a setting by its path in the file, and its new value."""

    protocol: str | None
    path: tuple[str, ...]
    value: Any

    @classmethod
    def parse(cls, text: str) -> Change:
        """From ``training.epochs=5``, or ``paper-cifar100:training.epochs=5`` for one protocol.

        A study goes by its name: ``choices.studies.longer.seeds=[2]``.

        Raises:
            ProtocolError: If there is no ``=`` in it.

        Example:
            >>> Change.parse("training.epochs=5").path
            ('training', 'epochs')
        """
        name, equals, value = text.partition("=")
        if not (equals and name):
            raise ProtocolError(f"--set takes SETTING=VALUE, as in training.epochs=5, got {text!r}")
        protocol, colon, path = name.rpartition(":")
        return cls(protocol if colon else None, tuple(path.split(".")), parse_value(value))

    def __str__(self) -> str:
        return f"{'.'.join(self.path)}={self.value}"


def load_preset(name: str, changes: Sequence[Change] = ()) -> Protocol:
    """The protocol in the shipped file called ``name``, or in a ``.toml`` file of the user's.

    Raises:
        ProtocolError: If there is no such file, or a setting is missing, unknown or senseless.
    """
    path = _path_of(name)
    table = {"name": path.stem} | read_toml(path)
    own = [change for change in changes if change.protocol in (None, table["name"])]
    try:
        return build(Protocol, _changed(table, own))
    except ProtocolError as error:
        raise ProtocolError(f"{path}: {error}") from None


def load_protocols(name: str, changes: Sequence[Change] = ()) -> tuple[Protocol, ...]:
    """All protocols of a preset: the file's own, and those that it names in ``also``.

    Raises:
        ProtocolError: Also if a change is for a protocol that the preset does not have.
    """
    first = load_preset(name, changes)
    files = [name, *(_beside(name, other) for other in first.also)]
    known = [str(read_toml(_path_of(file)).get("name", _path_of(file).stem)) for file in files]
    for change in changes:
        if change.protocol not in (None, *known):
            raise ProtocolError(
                f"--set {change.protocol}:{change}: the preset has no protocol "
                f"{change.protocol!r}, only {', '.join(known)}"
            )
    return (first, *(load_preset(file, changes) for file in files[1:]))


def _path_of(name: str) -> Path:
    """The file of a preset: a shipped one's by its bare name, else the path itself."""
    shipped = PRESET_DIR / f"{name}.toml"
    path = shipped if Path(name).name == name and shipped.exists() else Path(name)
    if not path.is_file():
        raise ProtocolError(
            f"--preset {name}: there is no such file; {meant(name, list(PRESETS))}, "
            "or a .toml file in their form"
        )
    return path


def _beside(name: str, other: str) -> str:
    # A user's file may name others that lie beside it.
    own = _path_of(name).with_name(f"{other}.toml")
    return str(own) if own.exists() else other


def _changed(table: dict[str, Any], changes: Sequence[Change]) -> dict[str, Any]:
    table = copy.deepcopy(table)
    for change in changes:
        _assign(table, change)
    words = [str(change) for change in changes if change.path[0] not in WORDING]
    if words:
        # Results of a changed protocol must never pass for those of the preset.
        table["name"] = f"{table['name']} with {', '.join(words)}"
        table["summary"] = f"{table.get('summary', '')}; changed: {', '.join(words)}"
        table["reduced"] = True
    return table


def _assign(table: dict[str, Any], change: Change) -> None:
    *places, last = change.path
    left = iter(places)
    for name in left:
        inner = table.setdefault(name, {})
        if isinstance(inner, list) and all(isinstance(item, dict) for item in inner):
            # Several tables in the same place, such as the studies, go by their names.
            by_name = {str(item.get("name")): item for item in inner}
            chosen = next(left, last)
            if chosen not in by_name:
                raise ProtocolError(f"--set {change}: {chosen!r} is none of {', '.join(by_name)}")
            inner = by_name[chosen]
        if not isinstance(inner, dict):
            raise ProtocolError(f"--set {change}: {name!r} is a value and has no settings in it")
        table = inner
    table[last] = change.value
