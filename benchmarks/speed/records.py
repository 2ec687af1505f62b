"""The common parts of all results files, and their words in reports."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.arguments import density, positive
from benchmarks.common.environment import machines, measured_on
from benchmarks.common.units import MILLI
from sparseopt.speedup.timing import time_in_turn

Record = dict[str, Any]


def read_records(folder: Path) -> list[Record]:
    """Return the content of all results files of the folder, in the order of their names."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def made_with(records: Iterable[Record], *names: str) -> list[str]:
    """Return lines with the machine and commit of records, which ``names`` identify."""
    about = ((record, record["environment"]) for record in records)
    return measured_on(
        (
            " ".join(str(record[name]) for name in names),
            f"{machines([one])}, commit `{one['git_commit']}`",
        )
        for record, one in about
    )


def timed(
    calls: Mapping[str, Callable[[], Any]],
    batch: int,
    rounds: int,
    device: torch.device | str = "cpu",
) -> Record:
    """Return medians of calls in turn, in milliseconds."""
    times = time_in_turn(calls, rounds=rounds, device=device)
    milliseconds = {name: MILLI * time.median for name, time in times.items()}
    return {"batch": batch, "rounds": rounds, "milliseconds": milliseconds}


def add_amounts(
    parser: argparse.ArgumentParser,
    batches: tuple[int, ...],
    rounds: int,
    models: Collection[str] = (),
) -> None:
    """Add options for batch sizes and rounds, with these defaults, and for one of the models."""
    shown = " ".join(map(str, batches))
    add = parser.add_argument
    if models:
        add("--workload", choices=tuple(models), default="wrn-22-2", help="default: %(default)s")
        stays = "share of weights that stays (default: 0.1)"
        add("--density", type=density, default=0.1, help=stays)
    sizes = f"batch sizes (default: {shown})"
    add("--batches", type=positive, nargs="+", default=batches, help=sizes)
    add("--rounds", type=positive, default=rounds, help=f"rounds that count (default: {rounds})")
