"""Times of training steps: a method's, mask updates among them, and dense ones in turn."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.cifar.images.batches import Batch, splits_for
from benchmarks.cifar.images.data import noise
from benchmarks.cifar.protocols.protocol import Protocol
from benchmarks.cifar.protocols.runspec import RunSpec
from benchmarks.cifar.running.training import Run
from benchmarks.overhead.timing import Round, Sample, milliseconds, quartiles, run_rounds, seconds

#: Steps of a round; the last one of a method that moves masks is a mask update.
STEPS = 4
ORDINARY, UPDATE = "ordinary", "update"
#: Of the run that is timed, so little is done that the drop fraction is still what it begins with.
STRETCH = 20


def measure_training(
    protocol: Protocol,
    spec: RunSpec,
    classes: int,
    device: torch.device,
    *,
    rounds: int,
    updates_a_step: float,
) -> dict[str, Any]:
    """Times of training steps, as runs make them, and their ratio to dense ones of the same round.

    Both train on one batch of noise: reading images is not in it.

    Args:
        protocol: What all runs share.
        spec: The run.
        classes: Number of classes.
        device: Where to train.
        rounds: How often each is measured.
        updates_a_step: Mask updates of the whole run over its steps.

    Returns:
        ``batch``; quartiles of ``own`` and ``dense`` milliseconds of ordinary steps, of the
        ``update`` if there is one, and of the ``ratio``; and ``updates_a_step``.
    """
    dense = RunSpec("dense", None, None, spec.seed)
    runs = {
        name: _run(protocol, one, classes, device, rounds)
        for name, one in (("own", spec), ("dense", dense))
    }
    for run in runs.values():
        run.cycle()
    measured = run_rounds(
        runs, lambda run, _: run.cycle(), rounds=range(rounds), on_round=lambda: None
    )
    return {
        "batch": protocol.training.batch_size,
        "own": milliseconds(measured, "own", ORDINARY),
        "update": milliseconds(measured, "own", UPDATE),
        "dense": milliseconds(measured, "dense", ORDINARY),
        "updates_a_step": updates_a_step,
        "ratio": step_ratio(measured, updates_a_step),
    }


def step_ratio(measured: Sequence[Round], updates_a_step: float) -> dict[str, float] | None:
    """Quartiles of the mean time of a method's step over a dense one's, by round.

    A round without a mask update, as there are before gradual pruning begins, has ordinary steps
    only.

    Example:
        >>> rounds = [{"own": {"ordinary": 2.0, "update": 6.0}, "dense": {"ordinary": 1.0}}]
        >>> step_ratio(rounds, updates_a_step=0.25)["median"]
        3.0
    """
    return quartiles(
        [
            _mean_step(samples["own"], updates_a_step) / samples["dense"][ORDINARY]
            for samples in measured
        ]
    )


def _mean_step(sample: Sample, updates_a_step: float) -> float:
    update = sample.get(UPDATE, sample[ORDINARY])
    return (1 - updates_a_step) * sample[ORDINARY] + updates_a_step * update


class _TimedRun:
    """A run that trains on one batch."""

    def __init__(self, run: Run, batch: Batch) -> None:
        self.run = run
        self.batch = batch
        run.model.train()

    def cycle(self) -> Sample:
        """Seconds of an ordinary step, the median of several, and of a mask update after them."""
        ordinary, updates = [], []
        for _ in range(STEPS):
            is_update = getattr(self.run.optimizer, "is_update_step", False)
            taken = seconds(lambda: self.run.train_step(self.batch), self.batch.labels.device)
            (updates if is_update else ordinary).append(taken)
        sample = {ORDINARY: statistics.median(ordinary)}
        return sample | ({UPDATE: updates[0]} if updates else {})


def _run(
    protocol: Protocol, spec: RunSpec, classes: int, device: torch.device, rounds: int
) -> _TimedRun:
    batch_size = protocol.training.batch_size
    fraction = protocol.training.validation_fraction
    # Enough for a batch and for an image to validate on, whatever the fraction.
    count = math.ceil((batch_size + 1) / min(fraction, 1.0 - fraction))
    images = noise(count, protocol.image_size, classes)
    splits = splits_for(protocol, images, device)
    longer = dataclasses.replace(protocol.training, epochs=STRETCH * STEPS * (rounds + 1))
    moving = dataclasses.replace(spec, delta_t=STEPS)
    run = Run(dataclasses.replace(protocol, training=longer), moving, splits)
    return _TimedRun(run, next(splits.train.shuffled(batch_size, run.data_generator)))
