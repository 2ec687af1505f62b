"""``report.md``, made from the results files alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.files import write_atomic
from benchmarks.structured.report.inference import inference_lines
from benchmarks.structured.report.linear import linear_lines
from benchmarks.structured.report.movement import movement_lines
from benchmarks.structured.report.training import training_lines

Record = dict[str, Any]

SECTIONS = {"inference": inference_lines, "training": training_lines, "linear": linear_lines}
INTRODUCTION = (
    "Times are medians of calls in turn, in a new random order each round, in one process. "
    "*Fastest* names the fastest of float32, float32 channels-last and bfloat16 channels-last for "
    "that model; a ratio of wall time is of fastest to fastest."
)


def write_report(folder: Path) -> None:
    """Read every results file in ``folder``, and write ``report.md`` and its figures there."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    write_atomic(folder / "report.md", "\n".join(report_lines(records, folder)).encode())


def report_lines(records: Sequence[Record], folder: Path) -> list[str]:
    """The lines of the report.

    Args:
        records: what the results files hold.
        folder: where figures are written to.
    """
    lines = ["# What removed channels give", "", INTRODUCTION, ""]
    for figure, section in SECTIONS.items():
        of_this = [record for record in records if record["figure"] == figure]
        lines += section(of_this) if of_this else []
    watched = [record for record in records if record["figure"] == "movement"]
    return lines + (movement_lines(watched, folder) if watched else [])
