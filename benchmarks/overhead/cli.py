"""The command line of ``benchmarks/overhead/run.py``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.overhead.building import CHOICES
from benchmarks.overhead.contenders import OURS
from benchmarks.overhead.inner import OPTIMIZERS, USUAL, matching
from benchmarks.overhead.peers.registry import INSTALL, PEERS
from benchmarks.overhead.report import write_reports
from benchmarks.overhead.results import FIGURES, MixedResultsError
from benchmarks.overhead.session import Config, run
from benchmarks.overhead.workloads import WORKLOADS

DESCRIPTION = f"""\
Measure what sparse training costs, beside the plain optimizer and beside other libraries: time of
a step, of a mask update and of a whole training step; bytes held, peak memory, construction and
checkpoint. All contenders are stepped in turn in one process, and every ratio is of two times of
the same round.

Other libraries are installed with {INSTALL}. Those that are missing are named in the report, with
the reason.

Writes DIR/results.json, anew after every model, density, optimizer and kind of figures, so a
measurement can be made in parts and repeated in parts. The reports and the plot are made from it
alone.
"""

RESULTS = "results.json"


def build_parser() -> argparse.ArgumentParser:
    """All options, each with its help."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/overhead/run.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_choices(parser)
    _add_amounts(parser)
    return parser


def _add_choices(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--models",
        nargs="+",
        choices=tuple(WORKLOADS),
        default=tuple(WORKLOADS),
        metavar="M",
        help=f"{', '.join(WORKLOADS)} (default: all)",
    )
    add(
        "--densities",
        nargs="+",
        type=_density,
        default=(0.1, 0.5),
        metavar="D",
        help="shares of live weights, above 0 and below 1 (default: 0.1 0.5)",
    )
    add(
        "--optimizers",
        nargs="+",
        type=_optimizers,
        default=(USUAL,),
        metavar="O",
        help=f"{', '.join(OPTIMIZERS)}, or sgd or adamw for all of that kind "
        f"(default: {' '.join(USUAL)})",
    )
    add(
        "--contenders",
        nargs="+",
        choices=CHOICES,
        default=CHOICES,
        metavar="C",
        help="who is measured beside the plain optimizer: "
        f"{', '.join(repr(name) for name in CHOICES)} (default: all)",
    )
    add(
        "--figures",
        nargs="+",
        choices=FIGURES,
        default=FIGURES,
        metavar="F",
        help="steps: the optimizer alone, and what it holds; training: whole training steps; "
        "construction; memory: peaks, each in a process of its own; profile: where the time goes, "
        f"and the floor, of {next(iter(OURS))!r} beside plain alone (default: all)",
    )


def _add_amounts(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rounds", type=_positive, metavar="N", help="rounds of steps that count (default: 32)")
    add(
        "--update-every",
        type=_positive,
        default=8,
        metavar="N",
        help="steps between mask updates, which are timed apart (default: %(default)s)",
    )
    add(
        "--training-rounds",
        type=_positive,
        metavar="N",
        help="rounds of training steps that count (default: 10)",
    )
    add("--threads", type=_positive, metavar="N", help="CPU threads (default: torch's choice)")
    add(
        "--device",
        type=_device,
        metavar="DEVICE",
        help="cpu, cuda, cuda:1, ... (default: an accelerator if there is one)",
    )
    add(
        "--out",
        type=Path,
        default=Path(__file__).parent / "results",
        metavar="DIR",
        help="everything that is written goes here (default: results/ beside this script)",
    )
    add(
        "--quick",
        action="store_true",
        help="tiny models and few rounds, to try the benchmark itself; marked as such",
    )
    add("--report-only", action="store_true", help="rebuild the reports from DIR/results.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = build_parser().parse_args(arguments)
    results = options.out / RESULTS
    try:
        if not options.report_only:
            _measure(options, results)
        elif not results.exists():
            print(f"error: {results} does not exist; measure first", file=sys.stderr)
            return 1
    except MixedResultsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in write_reports(results):
        print(f"wrote {path}")
    return 0


def _measure(options: argparse.Namespace, results: Path) -> None:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    config = _config(options)
    for peer in PEERS:
        if peer.name in config.contenders and peer.adapter and peer.version() is None:
            print(f"{peer.name} is not installed and left out; {INSTALL}", file=sys.stderr)
    run(config, results)


def _config(options: argparse.Namespace) -> Config:
    quick = options.quick
    optimizers = [name for names in options.optimizers for name in names]
    return Config(
        workloads=tuple(dict.fromkeys(options.models)),
        optimizers=tuple(dict.fromkeys(optimizers)),
        densities=tuple(dict.fromkeys(options.densities)),
        contenders=tuple(dict.fromkeys(options.contenders)),
        figures=tuple(dict.fromkeys(options.figures)),
        rounds=options.rounds or (2 * options.update_every if quick else 32),
        update_every=options.update_every,
        training_rounds=options.training_rounds or (2 if quick else 10),
        device=str(options.device or _default_device()),
        quick=quick,
    )


def _default_device() -> torch.device:
    if not torch.accelerator.is_available():
        return torch.device("cpu")
    device = torch.accelerator.current_accelerator()
    assert device is not None
    return device


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{text!r} can't be used: {reason}") from None
    return device


def _optimizers(text: str) -> tuple[str, ...]:
    try:
        return matching(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _density(text: str) -> float:
    try:
        density = float(text)
    except ValueError:
        density = 0.0
    if not 0.0 < density < 1.0:
        raise argparse.ArgumentTypeError(f"a density is above 0 and below 1, got {text!r}")
    return density


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on, got {text!r}")
    return int(text)
