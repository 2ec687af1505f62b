"""The results in a folder, and what makes two of them comparable."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.speed.records import Record

#: The options that a result was made with, by their names; data and device count too.
Settings = Mapping[str, Any]


class ResultsError(Exception):
    """Results that can't be used together; the message says what to do."""


def read_results(folder: Path, figure: str) -> dict[Path, Record]:
    """Return the results of a figure by their files, in the order of the names."""
    return {path: json.loads(path.read_text()) for path in sorted(folder.glob(f"{figure}-*.json"))}


def read_records(folder: Path, figure: str) -> list[Record]:
    """Return the results of a figure, in the order of their names."""
    return list(read_results(folder, figure).values())


def refuse_other(file: Path, made_with: Settings, asked: Settings) -> None:
    """Check that a file was made with all settings that are asked for.

    Raises:
        ResultsError: if one of them differs.
    """
    for name, value in asked.items():
        if made_with.get(name) != value:
            raise ResultsError(
                f"{file} was made with {name}={made_with.get(name)}, but now {name}={value}: "
                f"choose another folder with --out, or delete {file.name}"
            )


def read_alike(folder: Path, figure: str, settings: Callable[[Record], Settings]) -> list[Record]:
    """Return the results of a figure, for a table that is right for equal settings only.

    Raises:
        ResultsError: if a setting differs between two of them.
    """
    results = read_results(folder, figure)
    made_with = {file: settings(record) for file, record in results.items()}
    for file, found in made_with.items():
        first, expected = next(iter(made_with.items()))
        for name, value in expected.items():
            if found[name] != value:
                raise ResultsError(
                    f"{first} was made with {name}={value}, but {file} with {name}={found[name]}: "
                    "they can't share a table, so move one of them into another folder"
                )
    return list(results.values())


def kind_of(device: str) -> str:
    """The kind of a device, ``cpu`` or ``gpu``, from its type or name."""
    return "cpu" if device == "cpu" else "gpu"


def hardware_of(run: Record) -> tuple[str, str, int]:
    """Processor, device and threads: only times on the same hardware are compared."""
    where = run["environment"]
    return where["processor"], where["device"], where["threads"]


def fastest_epoch(runs: Iterable[Record]) -> float:
    """The seconds of the fastest epoch of some runs, because other jobs slow the others."""
    return float(min(epoch["seconds"] for run in runs for epoch in run["epochs"]))
