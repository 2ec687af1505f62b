"""What is left to do, and about how long it takes, from a few measured steps."""

from __future__ import annotations

import time

import torch

from benchmarks.cifar.methods import SPARSE_METHODS
from benchmarks.cifar.protocol import Protocol
from benchmarks.cifar.runspec import RunSpec
from benchmarks.cifar.training import Run, Splits

WARM_UP_STEPS = 3
MEASURED_STEPS = 8


def estimate_seconds(
    protocol: Protocol, specs: list[RunSpec], splits: Splits
) -> dict[RunSpec, float]:
    """About how many seconds each run takes here.

    Runs that train a network of the same size in the same way are measured once.
    """
    measured: dict[tuple[str, float | None], float] = {}
    estimates = {}
    for spec in specs:
        cost = _cost_class(spec)
        if cost not in measured:
            measured[cost] = measure_run(protocol, spec, splits)
        estimates[spec] = measured[cost]
    return estimates


def measure_run(protocol: Protocol, spec: RunSpec, splits: Splits) -> float:
    """Seconds of a whole run, extrapolated from a few steps and one batch of evaluation."""
    run = Run(protocol, spec, splits)
    batches = splits.train.shuffled(protocol.training.batch_size, run.data_generator)
    for step, (images, labels) in enumerate(batches, start=1):
        run.train_step(images, labels)
        if step == WARM_UP_STEPS:
            start = _now(splits.device)
        if step == WARM_UP_STEPS + MEASURED_STEPS:
            break
    per_step = (_now(splits.device) - start) / max(1, step - WARM_UP_STEPS)
    # A forward pass is about a third of a training step.
    per_image = per_step / protocol.training.batch_size / 3
    evaluated = protocol.training.epochs * len(splits.validation) + len(splits.test)
    return run.total_steps * per_step + evaluated * per_image


def _cost_class(spec: RunSpec) -> tuple[str, float | None]:
    if spec.method in SPARSE_METHODS:
        return "sparse", None
    return spec.method, spec.density


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def format_duration(seconds: float) -> str:
    """Seconds as people say them.

    Example:
        >>> format_duration(40), format_duration(3_720)
        ('40 s', '1 h 02 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min"
