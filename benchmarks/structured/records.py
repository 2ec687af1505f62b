"""The results in a folder, and what makes the times of two runs comparable."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from benchmarks.speed.records import Record


def read_records(folder: Path, figure: str) -> list[Record]:
    """Return the results of a figure, in the order of their names."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{figure}-*.json"))]


def hardware_of(run: Record) -> tuple[str, str, int]:
    """Processor, device and threads: only times on the same hardware are compared."""
    where = run["environment"]
    return where["processor"], where["device"], where["threads"]


def fastest_epoch(runs: Iterable[Record]) -> float:
    """The seconds of the fastest epoch of some runs, because other jobs slow the others."""
    return float(min(epoch["seconds"] for run in runs for epoch in run["epochs"]))
