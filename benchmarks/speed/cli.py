"""The command line of ``benchmarks/speed/run.py``.

Every figure is a module with three functions: ``add_options(parser)``; ``measure(options)``, which
yields pairs of a file's name and the record in it; and ``report_lines(records, folder)``. Before it
measures, it may refuse its options by an ``argparse.ArgumentError``. A new figure needs such a
module and a line in :data:`FIGURES`.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

from benchmarks.common.arguments import positive
from benchmarks.common.environment import describe_environment
from benchmarks.common.files import write_atomic
from benchmarks.common.tables import paragraph
from benchmarks.speed import condensed, inference, kernels, linear, movement, steps, training
from benchmarks.speed.records import Record, read_records

#: In the order of the report.
FIGURES: dict[str, ModuleType] = {
    "condensed": condensed,
    "inference": inference,
    "training": training,
    "linear": linear,
    "movement": movement,
    "steps": steps,
    "kernels": kernels,
}
REPORT = "report.md"
DESCRIPTION = """\
Measure how much time sparsity saves. Each command measures one figure and writes it into files of
its own in DIR; DIR/report.md is made from all such files. Calls that are compared are timed in
turn, in one process. `report` measures nothing, and makes the report again.
"""
INTRODUCTION = (
    "Times are medians of calls in turn, in a new random order each round, in one process. "
    "*Fastest* names the fastest of float32, float32 channels-last and bfloat16 channels-last for "
    "the model; a ratio of wall time compares the fastest of both models."
)


def build_parser() -> argparse.ArgumentParser:
    """All commands and options, each with its help."""
    parser = argparse.ArgumentParser(prog="benchmarks/speed/run.py", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="figure", required=True, metavar="FIGURE")
    for name, module in FIGURES.items():
        summary = (module.__doc__ or "").partition("\n")[0]
        module.add_options(commands.add_parser(name, parents=[_common()], help=summary))
    commands.add_parser("report", parents=[_common()], help="The report, from what was measured.")
    return parser


def _common() -> argparse.ArgumentParser:
    """The options of all commands; each command gets its own, because it may change a default."""
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument
    threads = "CPU threads (default: %(default)s)"
    add("--threads", type=positive, default=os.cpu_count(), help=threads)
    add(
        "--out",
        type=Path,
        default=Path("results/speed"),
        metavar="DIR",
        help="folder to write (default: %(default)s)",
    )
    return common


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write results and report; returns the exit status."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.figure in FIGURES:
        try:
            _measure(options)
        except argparse.ArgumentError as error:
            parser.error(str(error))
    write_report(options.out)
    print(f"wrote {options.out / REPORT}")
    return 0


def _measure(options: argparse.Namespace) -> None:
    """Measure a figure, and write each record as soon as it is there."""
    about = {"figure": options.figure, "environment": describe_environment(torch.device("cpu"))}
    for name, record in FIGURES[options.figure].measure(options):
        content = json.dumps({**about, **record}, indent=1) + "\n"
        write_atomic(options.out / f"{name}.json", content.encode())


def write_report(folder: Path) -> None:
    """Read every results file in ``folder``, and write ``report.md`` and its figures there."""
    lines = report_lines(read_records(folder), folder)
    write_atomic(folder / REPORT, ("\n".join(lines).rstrip() + "\n").encode())


def report_lines(records: Sequence[Record], folder: Path) -> list[str]:
    """The lines of the report on records; pictures are written into ``folder``."""
    lines = ["# What sparsity gives in time", "", *paragraph(INTRODUCTION)]
    for figure, module in FIGURES.items():
        of_this = [record for record in records if record["figure"] == figure]
        lines += module.report_lines(of_this, folder) if of_this else []
    return lines
