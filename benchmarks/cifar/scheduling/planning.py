"""What is going to be run, about how long that takes here, and how much it writes."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from benchmarks.cifar.images.batches import Split, held_out, splits_for
from benchmarks.cifar.images.data import Dataset, noise
from benchmarks.cifar.protocols.methods import RECIPES
from benchmarks.cifar.protocols.protocol import Protocol
from benchmarks.cifar.protocols.runspec import RunSpec
from benchmarks.cifar.running.training import Run
from benchmarks.cifar.scheduling.jobs import Job

WARM_UP_STEPS = 1
MEASURED_STEPS = 4
# In seconds. A slower step is measured once, and one beyond the other limit on a few images and in
# proportion, which a large network's fixed costs make too long.
SLOW_STEP, LONGEST_STEP = 1.0, 60.0
FEW_IMAGES = 16
# Lines of the results file, in bytes: for each epoch, layer and mask update, and for the rest.
EPOCH_BYTES, LAYER_BYTES, UPDATE_BYTES, RECORD_BYTES = 150, 100, 160, 2500


@dataclass(frozen=True)
class Size:
    """How many images a protocol trains and measures itself on.

    Args:
        train: Images to train on, without those for validation.
        validation: Images after every epoch.
        test: Images at the end.
        classes: Number of classes.
    """

    train: int
    validation: int
    test: int
    classes: int

    @classmethod
    def of(cls, protocol: Protocol, images: int, test: int, classes: int) -> Size:
        """From the number of images before those for validation are taken out."""
        validation = held_out(images, protocol.training.validation_fraction)
        return cls(images - validation, validation, test, classes)

    @classmethod
    def of_data(cls, protocol: Protocol, dataset: Dataset) -> Size:
        """Of a data set that is here."""
        images, test = len(dataset.train_labels), len(dataset.test_labels)
        return cls.of(protocol, images, test, dataset.num_classes)


@dataclass(frozen=True)
class Estimate:
    """What a job takes.

    Args:
        steps: Training steps.
        seconds: Alone on this machine.
        checkpoint: Bytes of its checkpoint, which goes when it is finished.
        result: Bytes of its line in the results file.
    """

    steps: int
    seconds: float
    checkpoint: int
    result: int


@dataclass(frozen=True)
class Cost:
    """What was measured of the runs of one kind."""

    seconds_per_step: float
    checkpoint: int
    layers: int


class Estimator:
    """Measures a few steps of each kind of run, on noise, and extrapolates.

    Runs that train a network of the same size in the same way are measured once.

    Args:
        sizes: Of the data set of each protocol.
        device: Where to measure.
    """

    def __init__(self, sizes: dict[Protocol, Size], device: torch.device) -> None:
        self._sizes = sizes
        self._device = device
        self._measured: dict[tuple[Protocol, str, float | None], Cost] = {}

    def estimate(self, job: Job) -> Estimate:
        """What a job takes."""
        protocol, size = job.protocol, self._sizes[job.protocol]
        cost = self._cost(protocol, job.spec)
        training = protocol.training
        epochs = training.epochs * RECIPES[job.spec.method].length
        steps = epochs * math.ceil(size.train / training.batch_size)
        # A forward pass is about a third of a training step.
        per_image = cost.seconds_per_step / training.batch_size / 3
        evaluated = epochs * size.validation + size.test
        delta_t = job.spec.delta_t or protocol.sparsity.delta_t
        updates = int(steps * protocol.sparsity.t_end_fraction / delta_t) if cost.layers else 0
        return Estimate(
            steps,
            steps * cost.seconds_per_step + evaluated * per_image,
            cost.checkpoint,
            RECORD_BYTES
            + epochs * EPOCH_BYTES
            + cost.layers * LAYER_BYTES
            + updates * UPDATE_BYTES,
        )

    def _cost(self, protocol: Protocol, spec: RunSpec) -> Cost:
        is_sparse = RECIPES[spec.method].optimizer is not None
        kind = (protocol, "sparse", None) if is_sparse else (protocol, spec.method, spec.density)
        if kind not in self._measured:
            plain = RunSpec("rigl", spec.init, spec.density, 0) if is_sparse else spec
            with torch.random.fork_rng():
                self._measured[kind] = self._measure(protocol, plain)
        return self._measured[kind]

    def _measure(self, protocol: Protocol, spec: RunSpec) -> Cost:
        batch = protocol.training.batch_size
        count = (WARM_UP_STEPS + MEASURED_STEPS) * batch
        # More than enough for all steps below, whatever is kept for validation.
        enough = int(2 * count / (1.0 - protocol.training.validation_fraction)) + 1
        images = noise(enough, protocol.image_size, self._sizes[protocol].classes)
        splits = splits_for(protocol, images, self._device)
        with warnings.catch_warnings():
            # That so few steps have no mask update in them is no news here.
            warnings.simplefilter("ignore", UserWarning)
            run = Run(protocol, spec, splits)
        run.model.train()
        few = min(FEW_IMAGES, batch)
        self._time(run, splits.train, few, 1)
        seconds = self._time(run, splits.train, few, 1) * batch / few
        if few < batch and seconds < SLOW_STEP:
            self._time(run, splits.train, batch, WARM_UP_STEPS)
            seconds = self._time(run, splits.train, batch, MEASURED_STEPS)
        elif few < batch and seconds < LONGEST_STEP:
            seconds = self._time(run, splits.train, batch, 1)
        layers = len(getattr(run.optimizer, "layers", ()))
        return Cost(seconds, len(run.checkpoint()), layers)

    def _time(self, run: Run, split: Split, batch_size: int, steps: int) -> float:
        batches = split.shuffled(batch_size, run.data_generator)
        start = self._now()
        for _, batch in zip(range(steps), batches, strict=False):
            run.train_step(batch)
        return (self._now() - start) / steps

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


@dataclass(frozen=True)
class Total:
    """What many jobs take together.

    Args:
        jobs: How many they are.
        steps: Training steps of all.
        seconds: Until the last is done.
        checkpoints: Bytes of the checkpoints that are there at a time.
        results: Bytes of the results.
    """

    jobs: int
    steps: int
    seconds: float
    checkpoints: int
    results: int

    @property
    def bytes(self) -> int:
        return self.checkpoints + self.results

    @classmethod
    def of(cls, estimates: Iterable[Estimate], workers: int) -> Total:
        """The sum; of the checkpoints, those of as many jobs as run at a time."""
        every: Sequence[Estimate] = list(estimates)
        checkpoints = sorted((estimate.checkpoint for estimate in every), reverse=True)
        return cls(
            len(every),
            sum(estimate.steps for estimate in every),
            sum(estimate.seconds for estimate in every) / max(1, min(workers, len(every))),
            sum(checkpoints[:workers]),
            sum(estimate.result for estimate in every),
        )

    @classmethod
    def one_after_other(cls, totals: Sequence[Total]) -> Total:
        """Of jobs that begin when those before them are done."""
        return cls(
            sum(total.jobs for total in totals),
            sum(total.steps for total in totals),
            sum(total.seconds for total in totals),
            max((total.checkpoints for total in totals), default=0),
            sum(total.results for total in totals),
        )


def format_bytes(count: float) -> str:
    """Bytes as people say them.

    Example:
        >>> format_bytes(900), format_bytes(2_500_000)
        ('900 B', '2.5 MB')
    """
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
