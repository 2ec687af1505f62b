"""The command line of ``benchmarks/structured/run.py``."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.environment import describe_environment
from benchmarks.common.files import write_atomic
from benchmarks.structured.linear import measure_linear
from benchmarks.structured.measuring import Case, measure_inference, measure_layers
from benchmarks.structured.models import WORKLOADS
from benchmarks.structured.movement import METHODS, Movement, training_images, watch
from benchmarks.structured.report import write_report
from benchmarks.structured.training import measure_training

Record = dict[str, Any]

DESCRIPTION = """\
What removed channels give. Each command measures one thing, writes it into a file of its own in
DIR, and makes DIR/report.md from all such files there:

  inference  times of a dense model, of the same model compacted after whole channels were dropped,
             and of a model that was built by hand in the compacted shapes
  training   times of training steps of these three, and of the masked model
  linear     times of linear layers of constant fan-in, in every dense and sparse way
  movement   which channels have ever been live, layer by layer, after each update of a short
             training
  report     nothing: the report is made anew

What is compared is timed in turn, in one process.
"""


def build_parser() -> argparse.ArgumentParser:
    """All commands and options, each with its help."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/structured/run.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="threads (default: all cores)"
    )
    common.add_argument(
        "--out",
        type=Path,
        default=Path("runs/structured"),
        metavar="DIR",
        help="folder to write (default: %(default)s)",
    )
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("--workload", choices=tuple(WORKLOADS), default="wrn-22-2", help="the model")
    model.add_argument(
        "--density", type=float, default=0.1, help="share of weights that stays (default: 0.1)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    inference = commands.add_parser("inference", parents=[common, model])
    _add_amounts(inference, batches=(1, 64, 128), rounds=15)
    inference.add_argument(
        "--layer-batch", type=int, default=64, help="batch of the table of layers (default: 64)"
    )
    _add_amounts(commands.add_parser("training", parents=[common, model]), (128,), 5)
    _add_amounts(commands.add_parser("linear", parents=[common]), (1, 64), 15)
    _add_movement(commands.add_parser("movement", parents=[common, model]))
    commands.add_parser("report", parents=[common])
    return parser


def _add_amounts(parser: argparse.ArgumentParser, batches: tuple[int, ...], rounds: int) -> None:
    add = parser.add_argument
    add(
        "--batches",
        type=int,
        nargs="+",
        default=batches,
        help=f"batch sizes (default: {' '.join(map(str, batches))})",
    )
    add("--rounds", type=int, default=rounds, help=f"rounds that count (default: {rounds})")


def _add_movement(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--methods", nargs="+", choices=METHODS, default=METHODS, help="default: all")
    add(
        "--data-dir",
        type=Path,
        help="folder with CIFAR-10, as benchmarks/cifar takes it; without, scikit-learn's digits",
    )
    add(
        "--cache-dir",
        type=Path,
        default=Path("runs/structured/cache"),
        help="where decoded images are kept (default: %(default)s)",
    )
    add("--steps", type=int, default=Movement.steps, help="default: %(default)s")
    add("--delta-t", type=int, default=Movement.delta_t, help="default: %(default)s")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write results and report."""
    options = build_parser().parse_args(argv)
    torch.set_num_threads(options.threads)
    commands = {
        "inference": _inference,
        "training": _training,
        "linear": _linear,
        "movement": _movement,
    }
    if options.command != "report":
        commands[options.command](options)
    write_report(options.out)
    print(f"wrote {options.out / 'report.md'}")
    return 0


def _write(options: argparse.Namespace, name: str, record: Record) -> None:
    environment = describe_environment(torch.device("cpu"))
    whole = {"figure": options.command, "environment": environment, **record}
    write_atomic(options.out / f"{name}.json", (json.dumps(whole, indent=1) + "\n").encode())


def _inference(options: argparse.Namespace) -> None:
    case = Case.make(options.workload, options.density)
    record = {
        "workload": case.workload,
        "density": case.density,
        "flops_ratio": case.flops_ratio,
        "inference": [
            # One sample takes little time, and varies the most.
            measure_inference(case, batch, options.rounds * (4 if batch == 1 else 1))
            for batch in options.batches
        ],
        "layer_batch": options.layer_batch,
        "layers": measure_layers(case, options.layer_batch, options.rounds),
    }
    _write(options, f"inference-{case.workload}-{case.density}", record)


def _training(options: argparse.Namespace) -> None:
    record = {
        "workload": options.workload,
        "density": options.density,
        "training": [
            measure_training(options.workload, options.density, batch, options.rounds)
            for batch in options.batches
        ],
    }
    _write(options, f"training-{options.workload}-{options.density}", record)


def _linear(options: argparse.Namespace) -> None:
    layers = [layer for batch in options.batches for layer in measure_linear(batch, options.rounds)]
    _write(options, "linear", {"linear": layers})


def _movement(options: argparse.Namespace) -> None:
    data = "digits" if options.data_dir is None else "cifar10"
    images = training_images(data, options.data_dir, options.cache_dir)
    for method in options.methods:
        movement = Movement(
            method=method,
            data=data,
            workload=options.workload,
            density=options.density,
            steps=options.steps,
            delta_t=options.delta_t,
        )
        _write(options, movement.name, watch(movement, images))
