"""The command line of ``benchmarks/structured/run.py``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.cifar.data import DataError
from benchmarks.common import arguments
from benchmarks.common.files import write_atomic
from benchmarks.structured import accuracy, inference, timing
from benchmarks.structured.records import ResultsError
from benchmarks.structured.report import report_lines

DESCRIPTION = """\
Measure what dropping entire neurons and heads costs in accuracy and gains in time. Every run or
figure is written into a file of its own in DIR, and is not measured again if its file exists. All
results of a figure in DIR have the same options; other options need another DIR. All files together
give DIR/report.md; `report` makes it again and measures nothing.
"""
FIGURES = {"accuracy": accuracy, "inference": inference, "time": timing}


def build_parser() -> argparse.ArgumentParser:
    """All commands and options, each with its help."""
    parser = argparse.ArgumentParser(prog="benchmarks/structured/run.py", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="figure", required=True, metavar="FIGURE")
    for name, module in FIGURES.items():
        module.add_options(commands.add_parser(name, parents=[_common()], help=module.__doc__))
    commands.add_parser("report", parents=[_common()], help="The report, from what was measured.")
    return parser


def _common() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument
    add(
        "--threads",
        type=arguments.positive,
        default=os.cpu_count(),
        help="CPU threads (default: %(default)s)",
    )
    out = Path("results/structured")
    add(
        "--out",
        type=Path,
        default=out,
        metavar="DIR",
        help="folder to write (default: %(default)s)",
    )
    return common


def main(given: Sequence[str] | None = None) -> int:
    """Measure, write results and report; returns the exit status."""
    parser = build_parser()
    options = parser.parse_args(given)
    try:
        _run(options)
    except (DataError, argparse.ArgumentError) as error:
        parser.error(str(error))
    except ResultsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    if options.figure in FIGURES:
        for name, record in FIGURES[options.figure].measure(options):
            content = json.dumps(record, indent=1) + "\n"
            write_atomic(options.out / f"{name}.json", content.encode())
    text = "\n".join(report_lines(options.out)).rstrip() + "\n"
    write_atomic(options.out / "report.md", text.encode())
