"""What is going to be run, about how long that takes here, and how much it writes."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from benchmarks.cifar.accounting import matched_density
from benchmarks.cifar.batches import Split, held_out, splits_for
from benchmarks.cifar.config import Protocol
from benchmarks.cifar.data import noise
from benchmarks.cifar.grid import MAIN, SEARCH, TIMING, RunSpec, expand
from benchmarks.cifar.jobs import Agenda, Job
from benchmarks.cifar.methods import recipe_of
from benchmarks.cifar.records import Folder
from benchmarks.cifar.train import Run
from benchmarks.common.words import format_bytes, format_duration

MEASURED_STEPS = 4
# In seconds. A slower step is measured once, and one beyond the other limit on a few images and in
# proportion, which a large network's fixed costs make too long.
SLOW_STEP, LONGEST_STEP = 1.0, 60.0
FEW_IMAGES = 16
# Lines of the results file, in bytes: for each epoch, layer and mask update, and for the rest.
EPOCH_BYTES, LAYER_BYTES, UPDATE_BYTES, RECORD_BYTES = 150, 100, 160, 2500


@dataclass(frozen=True)
class Part:
    """A protocol, the parts of it that are to be done, and what is known of its data.

    Args:
        protocol: Its ``choices`` are those of this session.
        parts: Names of the parts, as in ``Choices.parts``.
        data: The data set's fingerprint; empty where there is no data yet.
        images: Training images, those for validation included.
        test: Test images.
        classes: Number of classes.
    """

    protocol: Protocol
    parts: tuple[str, ...]
    data: str
    images: int
    test: int
    classes: int

    def jobs(self) -> list[Job]:
        """All runs but those of the search."""
        choices = self.protocol.choices
        specs = expand(choices) if MAIN in self.parts else []
        for study in choices.studies:
            if study.name in self.parts:
                specs += self._matched(expand(study), study.flops_of)
        return [self.job(spec) for spec in specs]

    def timing_jobs(self) -> list[Job]:
        """The runs whose networks are to be timed."""
        timing = self.protocol.choices.timing
        if TIMING not in self.parts or timing is None:
            return []
        (study,) = (one for one in self.protocol.choices.studies if one.name == timing.study)
        return [self.job(spec) for spec in self._matched(expand(study), study.flops_of)]

    def job(self, spec: RunSpec) -> Job:
        return Job(self.protocol, spec.without_defaults(self.protocol), self.data)

    def _matched(self, specs: list[RunSpec], flops_of: str | None) -> list[RunSpec]:
        if flops_of is None:
            return specs
        return [
            dataclasses.replace(
                spec,
                density=matched_density(
                    self.protocol, spec.init, flops_of, spec.density, self.classes
                ),
            )
            for spec in specs
            if spec.init is not None and spec.density is not None
        ]


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


class Estimator:
    """Measures a few steps of each kind of run, on noise, and extrapolates.

    Runs that train a network of the same size in the same way are measured once.

    Args:
        parts: All protocols.
        device: Where to measure.
    """

    def __init__(self, parts: Sequence[Part], device: torch.device) -> None:
        self._parts = {part.protocol: part for part in parts}
        self._device = device
        self._measured: dict[tuple[Protocol, str, float | None], tuple[float, int, int]] = {}

    def estimate(self, job: Job) -> Estimate:
        """What a job takes."""
        protocol, spec, part = job.protocol, job.spec, self._parts[job.protocol]
        seconds, checkpoint, layers = self._cost(protocol, spec)
        validation = held_out(part.images, protocol.training.validation_fraction)
        length = recipe_of(spec.method).length
        steps = protocol.steps(part.images - validation, length)
        epochs = protocol.training.epochs * length
        # A forward pass is about a third of a training step.
        evaluation = (epochs * validation + part.test) * seconds / protocol.training.batch_size / 3
        delta_t = spec.delta_t or protocol.sparsity.delta_t
        updates = int(steps * protocol.sparsity.t_end_fraction / delta_t) if layers else 0
        result = RECORD_BYTES + epochs * EPOCH_BYTES + layers * LAYER_BYTES + updates * UPDATE_BYTES
        return Estimate(steps, steps * seconds + evaluation, checkpoint, result)

    def _cost(self, protocol: Protocol, spec: RunSpec) -> tuple[float, int, int]:
        """Seconds of a step, bytes of a checkpoint and sparse layers."""
        is_sparse = recipe_of(spec.method).optimizer is not None
        kind = (protocol, "sparse", None) if is_sparse else (protocol, spec.method, spec.density)
        if kind not in self._measured:
            plain = RunSpec("rigl", spec.init, spec.density, 0) if is_sparse else spec
            with torch.random.fork_rng(), warnings.catch_warnings():
                # That so few steps have no mask update in them is no news here.
                warnings.simplefilter("ignore", UserWarning)
                self._measured[kind] = self._measure(protocol, plain)
        return self._measured[kind]

    def _measure(self, protocol: Protocol, spec: RunSpec) -> tuple[float, int, int]:
        batch = protocol.training.batch_size
        # More than enough for all steps below, whatever is kept for validation.
        kept = protocol.training.validation_fraction
        enough = int(2 * (MEASURED_STEPS + 1) * batch / (1.0 - kept)) + 1
        images = noise(enough, self._parts[protocol].classes)
        run = Run(protocol, spec, splits_for(protocol, images, self._device))
        run.model.train()
        few = min(FEW_IMAGES, batch)
        self._time(run, run.splits.train, few, 1)
        seconds = self._time(run, run.splits.train, few, 1) * batch / few
        if few < batch and seconds < SLOW_STEP:
            self._time(run, run.splits.train, batch, 1)
            seconds = self._time(run, run.splits.train, batch, MEASURED_STEPS)
        elif few < batch and seconds < LONGEST_STEP:
            seconds = self._time(run, run.splits.train, batch, 1)
        return seconds, len(run.checkpoint()), len(getattr(run.optimizer, "layers", ()))

    def _time(self, run: Run, split: Split, batch_size: int, steps: int) -> float:
        batches = split.shuffled(batch_size, run.data_generator)
        start = self._now()
        for _, batch in zip(range(steps), batches, strict=False):
            run.train_step(*batch)
        return (self._now() - start) / steps

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class Plan:
    """What is to be done, and about how long it takes.

    Args:
        parts: The protocols and their parts.
        folder: Has what is finished.
        workers: How many runs are done at a time.
    """

    def __init__(self, parts: Sequence[Part], folder: Folder, workers: int = 1) -> None:
        self.parts = parts
        self.folder = folder
        self.workers = workers
        self.agenda = Agenda([job for part in parts for job in part.jobs()], folder)
        self.timing_jobs = [job for part in parts for job in part.timing_jobs()]
        self.estimates: dict[str, Estimate] = {}
        #: Of each search: what a run takes, runs that wait for no other, and all runs.
        self.searches = [
            search
            for part in parts
            if SEARCH in part.parts and part.protocol.choices.search is not None
            for search in _searches_left(part, folder)
        ]

    def show(self, say: Callable[[str], None]) -> None:
        """Print what there is to do."""
        for part in self.parts:
            say(f"{part.protocol.label}: {part.protocol.describe()}")
        jobs, left = len(self.agenda.jobs), len(self.agenda.left)
        say(f"{jobs} runs, {jobs - left} of them finished, {left} to do")
        if self.timing_jobs:
            say(f"then the times of {len(self.timing_jobs)} networks, as far as they are not known")

    def measure(self, estimator: Estimator, say: Callable[[str], None]) -> None:
        """Estimate what is left; print what the runs of every variant take, and all together."""
        rows = [self._row(job, estimator.estimate(job)) for job in self.agenda.left]
        frame = pd.DataFrame(rows)
        for name, jobs in frame.groupby("name", sort=False) if rows else ():
            begun = f", {jobs.begun.sum()} begun, will resume" if jobs.begun.any() else ""
            say(
                f"  {name:<40} {len(jobs):>3} x {jobs.steps.iloc[0]:>8,} steps, "
                f"about {format_duration(jobs.seconds.sum())}{begun}"
            )
        search_runs, search_steps, search_seconds, search_bytes = self._measure_searches(estimator)
        if search_runs:
            say(
                f"  searches for alpha and delta_t: at most {search_runs:,} runs, "
                f"{search_steps:,} steps, about {format_duration(search_seconds)}"
            )
        seconds, steps, written = search_seconds, search_steps, float(search_bytes)
        if rows:
            seconds += frame.seconds.sum() / max(1, min(self.workers, len(frame)))
            steps += frame.steps.sum()
            written += frame.result.sum() + frame.checkpoint.nlargest(self.workers).sum()
        workers = f" by {self.workers} workers" if self.workers > 1 else ""
        say(
            f"together {len(rows) + search_runs:,} runs, {steps:,} steps, about "
            f"{format_duration(seconds)}{workers}, writing about {format_bytes(written)}"
        )

    def _row(self, job: Job, estimate: Estimate) -> dict[str, object]:
        self.estimates[job.key] = estimate
        name = job.spec.variant
        return {
            "name": f"{job.protocol.name}: {name}" if len(self.parts) > 1 else name,
            "begun": self.folder.checkpoint(job.key).exists(),
            **dataclasses.asdict(estimate),
        }

    def _measure_searches(self, estimator: Estimator) -> tuple[int, int, float, int]:
        """Runs, steps, seconds and bytes of all searches, one after the other."""
        runs = steps = written = 0
        seconds = 0.0
        for search in self.searches:
            one = estimator.estimate(search.example)
            after = search.runs - search.at_random
            # Of the trials that are not drawn at random, each waits for the results of the last.
            rounds = search.at_random / max(1, min(self.workers, search.at_random))
            rounds += after / max(1, min(self.workers, search.seeds))
            runs, steps = runs + search.runs, steps + search.runs * one.steps
            seconds, written = seconds + rounds * one.seconds, written + search.runs * one.result
        return runs, steps, seconds, written


@dataclass(frozen=True)
class SearchLeft:
    """What one search still has to do at most.

    Args:
        example: A run of the kind that it makes.
        runs: How many.
        at_random: How many of them wait for no result of another.
        seeds: How many of them make a trial.
    """

    example: Job
    runs: int
    at_random: int
    seeds: int


def _searches_left(part: Part, folder: Folder) -> Iterable[SearchLeft]:
    # Optuna takes a second to import, and most plans have no search.
    from benchmarks.cifar.search import tunings

    search = part.protocol.choices.search
    assert search is not None
    seeds = len(search.seeds)
    for tuning in tunings(part.protocol, part.data):
        left = tuning.left(folder)
        if left:
            example = part.job(tuning.specs(sum(search.alpha) / 2, sum(search.delta_t[:2]) // 2)[0])
            random = max(0, search.random_trials - (search.trials - left))
            yield SearchLeft(example, left * seeds, random * seeds, seeds)
