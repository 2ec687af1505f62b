"""The command line of ``benchmarks/structured/run.py``."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.cifar.environment import describe_environment
from benchmarks.cifar.files import write_atomic
from benchmarks.structured.linear import measure_linear
from benchmarks.structured.measuring import (
    Case,
    measure_inference,
    measure_layers,
    measure_training,
)
from benchmarks.structured.models import WORKLOADS
from benchmarks.structured.report import write_report

DESCRIPTION = """\
Time a dense model, the same model compacted after whole channels were dropped, and a model that was
built by hand in the compacted shapes, in turn, in one process. Or, with --linear, time linear
layers of constant fan-in in every dense and sparse way.

Writes DIR/WORKLOAD-DENSITY.json or DIR/linear.json, and DIR/report.md from all such files in DIR.
"""


def build_parser() -> argparse.ArgumentParser:
    """All options, each with its help."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/structured/run.py",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--workload", choices=tuple(WORKLOADS), default="wrn-22-2", help="the model")
    add("--density", type=float, default=0.1, help="share of weights that stays (default: 0.1)")
    add("--batches", type=int, nargs="+", default=(1, 64, 128), help="batch sizes")
    add("--rounds", type=int, default=15, help="rounds of inference that count (default: 15)")
    add("--training-rounds", type=int, default=5, help="rounds of training steps (default: 5)")
    add("--layer-batch", type=int, default=64, help="batch of the table of layers (default: 64)")
    add("--threads", type=int, default=os.cpu_count(), help="threads (default: all cores)")
    add("--linear", action="store_true", help="time linear layers of constant fan-in instead")
    add("--out", type=Path, default=Path("runs/structured"), metavar="DIR", help="folder to write")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write results and report."""
    options = build_parser().parse_args(argv)
    torch.set_num_threads(options.threads)
    record: dict[str, Any] = {"environment": describe_environment(torch.device("cpu"))}
    if options.linear:
        name = "linear"
        for batch in options.batches:
            record.setdefault("linear", []).extend(measure_linear(batch, options.rounds))
    else:
        name = f"{options.workload}-{options.density}"
        record.update(_compacted(options))
    path = options.out / f"{name}.json"
    write_atomic(path, (json.dumps(record, indent=1) + "\n").encode())
    write_report(options.out)
    print(f"wrote {path} and {options.out / 'report.md'}")
    return 0


def _compacted(options: argparse.Namespace) -> dict[str, Any]:
    case = Case.make(options.workload, options.density)
    return {
        "workload": case.workload,
        "density": case.density,
        "flops_ratio": case.flops_ratio,
        "inference": [
            # One sample takes little time, and varies the most.
            measure_inference(case, batch, options.rounds * (4 if batch == 1 else 1))
            for batch in options.batches
        ],
        "training": [
            measure_training(case, batch, options.training_rounds)
            for batch in options.batches
            if batch > 1 and options.training_rounds
        ],
        "layer_batch": options.layer_batch,
        "layers": measure_layers(case, options.layer_batch, options.rounds),
    }
