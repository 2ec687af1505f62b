"""The command line of ``benchmarks/overhead/run.py``."""

from __future__ import annotations

import argparse
import datetime
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.common.arguments import density, device, positive
from benchmarks.common.environment import describe_environment
from benchmarks.overhead import profiling, steps, training
from benchmarks.overhead.case import CHOICES, Case
from benchmarks.overhead.contenders import OPTIMIZERS, USUAL
from benchmarks.overhead.peers import INSTALL, PEERS
from benchmarks.overhead.report import write_report
from benchmarks.overhead.results import FIGURES, Peer, Results
from benchmarks.overhead.workloads import WORKLOADS
from sparseopt.speedup import kernels

DESCRIPTION = f"""\
Measure the cost of sparse training, beside the plain optimizer and beside other libraries: time of
a step, of a mask update and of a full training step, and bytes held. All contenders are stepped in
turn in one process, and every ratio compares two times of the same round.

Other libraries are installed with {INSTALL}. Those that are missing are named in
the report, with the reason.

DIR/results.json is written again after every model, density, optimizer and kind of figures, so a
measurement can be made in parts and repeated in parts. The report and the plot are made from this
file only. To try it: --models mlp.
"""
RESULTS = "results.json"
MEASURES: dict[str, Callable[[Case], dict[str, Any]]] = {
    "steps": steps.measure,
    "training": training.measure,
    "profile": profiling.measure,
}
#: Options that are the same in all cases.
SETTINGS = ("contenders", "rounds", "update_every", "training_rounds")


def build_parser() -> argparse.ArgumentParser:
    """All options, each with its help."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/overhead/run.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    contenders = f"contenders beside plain: {', '.join(map(repr, CHOICES))}"
    figures = (
        "steps: the optimizer alone, and what it holds; training: whole training steps; profile: "
        "where the time goes"
    )
    _add_choices(parser, "--models", WORKLOADS, ", ".join(WORKLOADS))
    _add_choices(parser, "--optimizers", OPTIMIZERS, ", ".join(OPTIMIZERS), default=USUAL)
    _add_choices(parser, "--contenders", CHOICES, contenders)
    _add_choices(parser, "--figures", FIGURES, figures)
    add = parser.add_argument
    densities = "shares of live weights, above 0 and below 1 (default: 0.1 0.5)"
    between = "steps between updates (default: 8)"
    full = "rounds of full training steps (default: 10)"
    add("--densities", nargs="+", type=_density, default=[0.1, 0.5], metavar="D", help=densities)
    add("--rounds", type=positive, default=32, metavar="N", help="rounds of steps (default: 32)")
    add("--update-every", type=positive, default=8, metavar="N", help=between)
    add("--training-rounds", type=positive, default=10, metavar="N", help=full)
    add("--threads", type=positive, metavar="N", help="CPU threads (default: torch's choice)")
    add("--device", type=device, help="cpu, cuda:1, ... (default: an accelerator, if any)")
    add("--out", type=Path, default=Path("results/overhead"), metavar="DIR", help="%(default)s")
    add("--report-only", action="store_true", help="make the report from DIR/results.json again")
    return parser


def _add_choices(
    parser: argparse.ArgumentParser,
    option: str,
    choices: Iterable[str],
    text: str,
    default: Iterable[str] = (),
) -> None:
    """Add an option that takes several of the choices; without a default, all of them."""
    shown = " ".join(default) or "all"
    parser.add_argument(
        option,
        nargs="+",
        choices=list(choices),
        default=list(default or choices),
        metavar="NAME",
        help=f"{text} (default: {shown})",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; returns the exit status."""
    options = build_parser().parse_args(arguments)
    results = options.out / RESULTS
    if options.report_only and not results.exists():
        print(f"error: {results} does not exist; measure first", file=sys.stderr)
        return 1
    if not options.report_only:
        _measure(options, results)
    for path in write_report(results):
        print(f"wrote {path}")
    return 0


def _measure(options: argparse.Namespace, path: Path) -> None:
    """Measure all figures of all cases and write ``path``, the results file, after every entry."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    # Load the kernels now: where they are compiled already, a step copies live weights with them.
    kernels.available()
    results = Results(path)
    peers: dict[str, Peer] = {}
    for name, peer in PEERS.items():
        if name in options.contenders:
            absent = peer.absent()
            peers[name] = {"version": peer.version(), "absent": absent}
            if absent is not None:
                print(f"{name} is left out: {absent}", file=sys.stderr)
    settings = {key: getattr(options, key) for key in SETTINGS}
    settings["device"] = (
        options.device or torch.accelerator.current_accelerator(True) or torch.device("cpu")
    )
    chosen = (options.models, options.densities, options.optimizers, options.figures)
    places = dict.fromkeys(itertools.product(*chosen))
    todo = [(Case(*place, **settings), figures) for *place, figures in places]
    with tqdm(todo, unit="entry") as bar:
        for case, figures in bar:
            if figures == "training" and case.about.make_batch is None:
                continue
            place = {key: getattr(case, key) for key in ("workload", "density", "optimizer")}
            bar.set_description(" ".join(map(str, (*place.values(), figures))))
            found = MEASURES[figures](case)
            entry = {"figures": figures, **place, **found, "made_with": _made_with(case)}
            results.put(entry, peers)


def _made_with(case: Case) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "rounds": case.repeated(case.rounds),
        "update_every": case.update_every,
        "training_rounds": case.repeated(case.training_rounds),
        **describe_environment(case.device),
        "cores": os.cpu_count(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "kernels": kernels.variant(),
    }


def _density(text: str) -> float:
    """A share of live weights; at density 1 there is nothing to compare."""
    value = density(text)
    if value == 1.0:
        raise argparse.ArgumentTypeError(f"must be above 0 and below 1, got {text!r}")
    return value
