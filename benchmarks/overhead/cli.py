"""The command line of ``benchmarks/overhead/run.py``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.overhead.contenders import OPTIMIZERS, STATES
from benchmarks.overhead.report import write_report
from benchmarks.overhead.session import Config, run
from benchmarks.overhead.workloads import WORKLOADS

DESCRIPTION = """\
Measure the wrapped optimizer beside the plain one: time of a step, of masking gradients and of a
mask update, and bytes held. All contenders are stepped in turn in one process, and every ratio is
of two times of the same round.

Writes DIR/results.json, anew after every case, and DIR/report.md, which is made from it alone.
"""

RESULTS = "results.json"
REPORT = "report.md"


def build_parser() -> argparse.ArgumentParser:
    """All options, each with its help."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/overhead/run.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--workloads",
        nargs="+",
        choices=tuple(WORKLOADS),
        default=tuple(WORKLOADS),
        metavar="W",
        help=f"models: {', '.join(WORKLOADS)} (default: all)",
    )
    add(
        "--optimizers",
        nargs="+",
        choices=OPTIMIZERS,
        default=OPTIMIZERS,
        metavar="O",
        help=f"inner optimizers: {', '.join(OPTIMIZERS)} (default: all)",
    )
    add(
        "--densities",
        nargs="+",
        type=_density,
        default=(0.1,),
        metavar="D",
        help="shares of live weights, above 0 and at most 1 (default: 0.1)",
    )
    add(
        "--states",
        nargs="+",
        choices=STATES,
        default=STATES,
        metavar="S",
        help=f"state= of the wrapper: {', '.join(STATES)} (default: all)",
    )
    add("--rounds", type=_positive, metavar="N", help="rounds that count (default: 80)")
    add(
        "--update-every",
        type=_positive,
        default=4,
        metavar="N",
        help="steps between mask updates, which are timed apart (default: %(default)s)",
    )
    add(
        "--training-step",
        action="store_true",
        help="also measure whole training steps, of the workloads that can be trained",
    )
    add(
        "--training-rounds",
        type=_positive,
        metavar="N",
        help="rounds of training steps that count (default: 20)",
    )
    add(
        "--batch-size",
        type=_positive,
        metavar="N",
        help="samples in a training step (default: 128)",
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
    add("--report-only", action="store_true", help="rebuild the report from DIR/results.json")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = build_parser().parse_args(arguments)
    results = options.out / RESULTS
    if options.report_only:
        if not results.exists():
            print(f"error: {results} does not exist; measure first", file=sys.stderr)
            return 1
    else:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        run(_config(options), results)
    write_report(results, options.out / REPORT)
    print(f"report: {options.out / REPORT}")
    return 0


def _config(options: argparse.Namespace) -> Config:
    quick = options.quick
    return Config(
        workloads=tuple(dict.fromkeys(options.workloads)),
        optimizers=tuple(dict.fromkeys(options.optimizers)),
        densities=tuple(dict.fromkeys(options.densities)),
        states=tuple(dict.fromkeys(options.states)),
        rounds=options.rounds or (8 if quick else 80),
        update_every=options.update_every,
        training_step=options.training_step,
        training_rounds=options.training_rounds or (2 if quick else 20),
        batch_size=options.batch_size or (4 if quick else 128),
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


def _density(text: str) -> float:
    try:
        density = float(text)
    except ValueError:
        density = 0.0
    if not 0.0 < density <= 1.0:
        raise argparse.ArgumentTypeError(f"a density is above 0 and at most 1, got {text!r}")
    return density


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 on, got {text!r}")
    return int(text)
