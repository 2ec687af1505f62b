"""The common parts of all results files, and their words in reports."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.arguments import density, positive
from benchmarks.common.environment import machines, measured_on
from sparseopt.speedup.timing import time_in_turn

Record = dict[str, Any]

MILLI = 1e3


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


def fastest_row(
    record: Record, batch: int, times: Mapping[str, float], ratios: Sequence[tuple[str, str]]
) -> dict[str, str]:
    """The fastest implementation of each model, and ratios of their times.

    Args:
        record: The record of the models.
        batch: The batch size.
        times: Milliseconds by ``"model, implementation"``.
        ratios: Pairs of models whose ratio is shown.
    """
    found: dict[str, tuple[float, str]] = {}
    for name, time in times.items():
        model, _, implementation = name.partition(", ")
        found[model] = min((time, implementation), found.get(model, (time, implementation)))
    return {
        **model_cells(record, batch),
        **{f"{name}, fastest": f"{time:.4g} ms, {how}" for name, (time, how) in found.items()},
        **{f"{one} / {other}": f"{found[one][0] / found[other][0]:.3f}" for one, other in ratios},
    }


def model_cells(record: Record, batch: int) -> dict[str, str]:
    """The cells of a table that identify the model of a row."""
    return {"model": record["workload"], "density": str(record["density"]), "batch": str(batch)}


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
