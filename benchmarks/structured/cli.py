"""The command line of ``benchmarks/structured/run.py``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.structured import accuracy

DESCRIPTION = """\
What whole neurons and heads cost in accuracy, and give in time. Every run or figure is written into
a file of its own in DIR; one that is there is not run again.
"""


def build_parser() -> argparse.ArgumentParser:
    """All commands and options, each with its help."""
    parser = argparse.ArgumentParser(prog="benchmarks/structured/run.py", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="figure", required=True, metavar="FIGURE")
    accuracy.add_options(_command(commands, "accuracy", accuracy.__doc__))
    return parser


def _command(
    commands: argparse._SubParsersAction, name: str, about: str | None
) -> argparse.ArgumentParser:  # type: ignore[type-arg]
    command: argparse.ArgumentParser = commands.add_parser(name, help=about)
    command.add_argument("--threads", type=int, default=os.cpu_count(), help="default: %(default)s")
    command.add_argument("--out", type=Path, default=Path("results/structured"), metavar="DIR")
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write results; returns the exit status."""
    options = build_parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, record in accuracy.measure(options):
        accuracy.write(options.out, name, record)
    return 0
