"""The command line of ``benchmarks/overhead/run.py``."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.overhead.building import CHOICES, Case
from benchmarks.overhead.inner import NAMES, USUAL, matching
from benchmarks.overhead.measure import Config, run
from benchmarks.overhead.peers.registry import INSTALL, PEERS
from benchmarks.overhead.report import write_report
from benchmarks.overhead.results import FIGURES
from benchmarks.overhead.workloads import WORKLOADS

DESCRIPTION = f"""\
Measure what sparse training costs, beside the plain optimizer and beside other libraries: time of
a step, of a mask update and of a whole training step, and bytes held. All contenders are stepped
in turn in one process, and every ratio is of two times of the same round.

Other libraries are installed with {INSTALL}. Those that are missing are named in the report, with
the reason.

Writes DIR/results.json, anew after every model, density, optimizer and kind of figures, so a
measurement can be made in parts and repeated in parts. The report and the plot are made from it
alone.
"""
RESULTS = "results.json"
HERE = Path(__file__).parent


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
    models = f"{', '.join(WORKLOADS)} (default: all)"
    densities = "shares of live weights, above 0 and below 1 (default: 0.1 0.5)"
    optimizers = f"{', '.join(NAMES)} (default: {' '.join(USUAL)})"
    contenders = f"who is measured beside plain: {', '.join(map(repr, CHOICES))} (default: all)"
    figures = (
        "steps: the optimizer alone, and what it holds; training: whole training steps; profile: "
        "where the time goes (default: all)"
    )
    add = parser.add_argument
    add("--models", nargs="+", choices=WORKLOADS, default=[*WORKLOADS], metavar="M", help=models)
    add("--densities", nargs="+", type=_density, default=[0.1, 0.5], metavar="D", help=densities)
    add("--optimizers", nargs="+", choices=NAMES, default=USUAL, metavar="O", help=optimizers)
    add("--contenders", nargs="+", choices=CHOICES, default=CHOICES, metavar="C", help=contenders)
    add("--figures", nargs="+", choices=FIGURES, default=FIGURES, metavar="F", help=figures)


def _add_amounts(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rounds", type=_positive, metavar="N", help="rounds of steps (default: 32)")
    add("--update-every", type=_positive, default=8, metavar="N", help="default: %(default)s steps")
    add("--training-rounds", type=_positive, metavar="N", help="training steps (default: 10)")
    add("--threads", type=_positive, metavar="N", help="CPU threads (default: torch's choice)")
    add(
        "--device",
        type=_device,
        help="cpu, cuda:1, ... (default: an accelerator if there is one)",
    )
    add("--out", type=Path, default=HERE / "results", metavar="DIR", help="default: %(default)s")
    add("--quick", action="store_true", help="tiny models, to try it; writes into DIR/quick")
    add("--report-only", action="store_true", help="make the report from DIR/results.json again")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = build_parser().parse_args(arguments)
    # Among real results nobody would know those of tiny models from them.
    results = options.out / "quick" / RESULTS if options.quick else options.out / RESULTS
    if options.report_only and not results.exists():
        print(f"error: {results} does not exist; measure first", file=sys.stderr)
        return 1
    if not options.report_only:
        _measure(options, results)
    for path in write_report(results):
        print(f"wrote {path}")
    return 0


def _measure(options: argparse.Namespace, results: Path) -> None:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    for peer in PEERS:
        if peer.name in options.contenders and peer.version() is None:
            print(f"{peer.name} is not installed and left out; {INSTALL}", file=sys.stderr)
    optimizers = [name for names in options.optimizers for name in matching(names)]
    cases = [Case(*one) for one in itertools.product(options.models, options.densities, optimizers)]
    quick = options.quick
    config = Config(
        contenders=tuple(options.contenders),
        rounds=options.rounds or (2 * options.update_every if quick else 32),
        update_every=options.update_every,
        training_rounds=options.training_rounds or (2 if quick else 10),
        device=options.device or torch.accelerator.current_accelerator(True) or torch.device("cpu"),
        quick=quick,
    )
    run(list(dict.fromkeys(cases)), options.figures, config, results)


def _device(text: str) -> torch.device:
    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{text!r} can't be used: {reason}") from None


def _density(text: str) -> float:
    if not 0.0 < float(text) < 1.0:
        raise argparse.ArgumentTypeError(f"a density is above 0 and below 1, got {text!r}")
    return float(text)


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on, got {text!r}")
    return int(text)
