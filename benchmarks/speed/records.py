"""What every results file has, and the words for it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.tables import paragraph, table_of
from sparseopt.speedup.timing import time_in_turn

Record = dict[str, Any]

MILLI = 1e3
#: How a model is stored and run; a speed-up is against the fastest of them.
WAYS = ("float32", "float32 channels-last", "bfloat16 channels-last")


def read_records(folder: Path) -> list[Record]:
    """Return the content of all results files of the folder, in the order of their names."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def made_with(record: Record) -> str:
    """Say on which machine and at which commit a record was made."""
    return f"{machines([record])}, commit `{record['environment']['git_commit']}`."


def machines(records: Iterable[Record]) -> str:
    """Say what records were measured on."""
    about = (record["environment"] for record in records)
    return "; ".join(
        dict.fromkeys(
            f"{one['processor']}, {one['threads']} threads, torch {one['torch']}" for one in about
        )
    )


def timed(calls: Mapping[str, Callable[[], Any]], batch: int, rounds: int) -> Record:
    """Return medians of calls in turn, in milliseconds."""
    times = time_in_turn(calls, rounds=rounds, device="cpu")
    milliseconds = {name: MILLI * time.median for name, time in times.items()}
    return {"batch": batch, "rounds": rounds, "milliseconds": milliseconds}


def sections(
    title: str, text: str, records: Sequence[Record], body: Callable[[Record], list[str]]
) -> list[str]:
    """What ``text`` explains, in a subsection for each workload at each density."""
    lines = [f"## {title}", "", *paragraph(text)]
    for record in records:
        lines += [f"### {title}: {record['workload']}, density {record['density']}", ""]
        lines += [*paragraph(made_with(record)), *body(record)]
    return lines


def fastest(times: Mapping[str, float], name: str) -> tuple[float, str]:
    """Return the least of ``times``, by ``"model, way"``, that is of a model, and the way."""
    prefix = f"{name}, "
    return min(
        (value, key.removeprefix(prefix)) for key, value in times.items() if key.startswith(prefix)
    )


def fastest_table(
    times: Mapping[int, Mapping[str, float]],
    models: Sequence[str],
    ratios: Callable[..., dict[str, str]],
) -> list[str]:
    """The fastest way of each model by batch size, and what ``ratios`` makes of their times."""
    rows = []
    for batch, of_ways in times.items():
        found = {name: fastest(of_ways, name) for name in models}
        words = {f"{name}, fastest": _in_words(*one) for name, one in found.items()}
        shown = ratios(*(time for time, _ in found.values()))
        rows.append({"batch": str(batch), **words, **shown})
    return table_of(rows)


def _in_words(time: float, way: str) -> str:
    return f"{time:.1f} ms, {way}" if time >= 100 else f"{time:.2f} ms, {way}"


def layout_of(way: str) -> torch.memory_format:
    """Return the memory format of a way."""
    return torch.channels_last if "channels-last" in way else torch.contiguous_format


def add_model(parser: argparse.ArgumentParser, models: Iterable[str]) -> None:
    """Let the user choose a model and its density."""
    add = parser.add_argument
    add("--workload", choices=tuple(models), default="wrn-22-2", help="default: %(default)s")
    add("--density", type=float, default=0.1, help="share of weights that stays (default: 0.1)")


def add_amounts(parser: argparse.ArgumentParser, batches: tuple[int, ...], rounds: int) -> None:
    """Let the user choose batch sizes and rounds, with these defaults."""
    shown = " ".join(map(str, batches))
    add = parser.add_argument
    add("--batches", type=int, nargs="+", default=batches, help=f"batch sizes (default: {shown})")
    add("--rounds", type=int, default=rounds, help=f"rounds that count (default: {rounds})")
