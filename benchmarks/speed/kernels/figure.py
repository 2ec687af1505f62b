"""The command: chooses layers, skips those measured before on this machine, and measures."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.common.arguments import density, positive
from benchmarks.common.environment import REPOSITORY
from benchmarks.common.files import write_atomic
from benchmarks.speed.kernels.layers import WORKLOADS, Layer, Workload
from benchmarks.speed.kernels.limits import measure_limits
from benchmarks.speed.kernels.machine import about_machine, file_suffix, keep_freed_memory
from benchmarks.speed.kernels.measuring import measure_layer
from benchmarks.speed.records import Record
from sparseopt.speedup import kernels

FIGURE = "kernels"
DENSITIES = (0.05, 0.1, 0.2, 0.3, 0.5)
#: These take less than three minutes on one idle core.
QUICK = ("wrn-22-2-128", "imagenet-resnet50-1", "gpt2-1", "gpt2-512")
QUICK_DENSITIES = (0.05, 0.1, 0.3)
#: The environment variables that restrict dense code and our kernels to AVX2.
AVX2 = {
    "SPARSEOPT_KERNELS": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
}


@dataclass(frozen=True)
class Choice:
    """What to measure.

    Attributes:
        densities: Densities at which our kernels are measured.
        rounds: Rounds that count.
        again: Whether to measure layers again that were measured before.
    """

    densities: tuple[float, ...]
    rounds: int
    again: bool


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this figure."""
    add = parser.add_argument
    parser.set_defaults(threads=1)
    add("--preset", choices=("quick", "full"), default="full", help="quick: some minutes")
    add("--workloads", nargs="+", choices=tuple(WORKLOADS), help="networks at a batch size")
    add("--densities", nargs="+", type=density, help="densities of the kernels")
    add("--rounds", type=positive, default=7, help="rounds that count (default: %(default)s)")
    add("--again", action="store_true", help="measure layers again that this machine has measured")
    add(
        "--isa",
        choices=("native", "avx2"),
        default="native",
        help="avx2: dense code and kernels restricted to AVX2 (default: %(default)s)",
    )


def measure(options: argparse.Namespace) -> Iterator[tuple[str, Record]]:
    """Time network after network; yield a network's record when all its layers are in it."""
    if options.isa == "avx2" and any(os.environ.get(key) != AVX2[key] for key in AVX2):
        _run_with_avx2()
        return
    if not kernels.available():
        raise SystemExit(f"no kernels to measure: {kernels.why_not()}")
    keep_freed_memory()
    # A library with an OpenMP runtime of its own reads this variable when it is imported.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    quick = options.preset == "quick"
    workloads = options.workloads or (QUICK if quick else tuple(WORKLOADS))
    densities = options.densities or (QUICK_DENSITIES if quick else DENSITIES)
    choice = Choice(tuple(densities), options.rounds, options.again)
    about = about_machine(options.threads)
    suffix = file_suffix(about)
    if options.threads == 1:
        yield f"{FIGURE}-limits{suffix}", {**about, "limits": measure_limits(about["variant"])}
    for name in workloads:
        file = f"{FIGURE}-{name}{suffix}"
        path = options.out / f"{file}.json"
        record = measure_workload(WORKLOADS[name], choice, about, path)
        if record is not None:
            yield file, record
            # The record is in the results file now.
            unfinished(path).unlink()


def unfinished(path: Path) -> Path:
    """The file beside a results file that has the layers of a run until all are measured."""
    return path.with_name(f"{path.name}.part")


def measure_workload(
    workload: Workload, choice: Choice, about: Record, path: Path
) -> Record | None:
    """Time each layer of a network that has not been timed yet.

    Each layer is written into ``unfinished(path)`` as soon as it is measured, so the results file
    stays as it is until all layers are there. Layers in the unfinished file are from an interrupted
    run, so they count even if layers are measured again.

    Returns:
        The record, or ``None`` if the results file has all layers already.
    """
    layers, part = workload.layers(), unfinished(path)
    done = {} if choice.again else measured_before(path, about, choice.densities)
    if layers.keys() <= done.keys():
        return None
    done |= measured_before(part, about, choice.densities)
    for layer, count in layers.items():
        if layer in done:
            continue
        print(f"{workload.name}: {layer.words}", flush=True)
        torch.manual_seed(0)
        clock = about["clock"]
        done[layer] = {
            "count": count,
            **measure_layer(layer, choice.densities, workload.training, choice.rounds, clock),
        }
        write_atomic(part, json.dumps({**about, "layers": list(done.values())}).encode())
    return {
        **about,
        "network": workload.network,
        "batch": workload.batch,
        "workload": workload.name,
        "shapes": len(layers),
        "layers": [done[layer] for layer in layers],
    }


def measured_before(path: Path, about: Record, densities: Sequence[float]) -> dict[Layer, Record]:
    """The layers in a results file, if it is about the same kernels and machine; else none."""
    if not path.exists():
        return {}
    record = json.loads(path.read_text())
    if any(record[key] != value for key, value in about.items()):
        return {}
    return {
        Layer(**{name: one[name] for name in Layer.__dataclass_fields__}): one
        for one in record["layers"]
        if set(densities) <= {row.get("density") for row in one["times"]}
    }


def _run_with_avx2() -> None:
    """Run the same command in a process that never sees a wider instruction set."""
    program = REPOSITORY / "benchmarks" / "speed" / "run.py"
    environment = {**os.environ, **AVX2}
    subprocess.run([sys.executable, program, *sys.argv[1:]], env=environment, check=True)
