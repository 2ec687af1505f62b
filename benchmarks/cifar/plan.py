"""What is going to be run, about how long that takes here, and how much it writes."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
import torch

from benchmarks.cifar.accounting import matched_density
from benchmarks.cifar.batches import held_out, splits_for
from benchmarks.cifar.config import Protocol
from benchmarks.cifar.data import noise
from benchmarks.cifar.grid import MAIN, SEARCH, TIMING, RunSpec, Study, expand
from benchmarks.cifar.jobs import Agenda, Job
from benchmarks.cifar.methods import recipe_of
from benchmarks.cifar.records import Folder
from benchmarks.cifar.train import Run
from benchmarks.common.words import format_bytes, format_duration

# In seconds. A slower step is measured once, and one beyond the other limit on a few images and in
# proportion, which a large network's fixed costs make too long.
SLOW_STEP, LONGEST_STEP = 1.0, 60.0
FEW_IMAGES, MEASURED_STEPS = 16, 4
# A line of the results file, in bytes: for each epoch, and for the rest.
EPOCH_BYTES, RECORD_BYTES = 150, 10_000


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
        main = [self.job(spec) for spec in expand(choices)] if MAIN in self.parts else []
        chosen = (study for study in choices.studies if study.name in self.parts)
        return [*main, *(job for study in chosen for job in self._jobs_of(study))]

    def timing_jobs(self) -> list[Job]:
        """The runs whose networks are to be timed."""
        timing = self.protocol.choices.timing
        if TIMING not in self.parts or timing is None:
            return []
        (study,) = (one for one in self.protocol.choices.studies if one.name == timing.study)
        return self._jobs_of(study)

    def job(self, spec: RunSpec) -> Job:
        return Job(self.protocol, spec.without_defaults(self.protocol), self.data)

    def _jobs_of(self, study: Study) -> list[Job]:
        specs = expand(study)
        if study.flops_of is not None:
            match = (self.protocol, study.flops_of, self.classes)
            masked = (spec for spec in specs if spec.init and spec.density)
            specs = [
                dataclasses.replace(spec, density=matched_density(*match, spec.init, spec.density))
                for spec in masked
            ]
        return [self.job(spec) for spec in specs]


class Estimate(NamedTuple):
    """What a job takes: training steps, seconds alone on this machine, and bytes.

    Its checkpoint goes when it is finished; its result is a line of the results file.
    """

    steps: int
    seconds: float
    checkpoint: int
    result: int


class Estimator:
    """Measures a few steps of each kind of run, on noise, and extrapolates.

    Runs that train a network of the same size in the same way are measured once.
    """

    def __init__(self, parts: Sequence[Part], device: torch.device) -> None:
        self._parts = {part.protocol: part for part in parts}
        self._device = device
        self._measured: dict[tuple[Protocol, str, float | None], tuple[float, int]] = {}

    def estimate(self, job: Job) -> Estimate:
        """What a job takes."""
        protocol, part = job.protocol, self._parts[job.protocol]
        seconds, checkpoint = self._cost(protocol, job.spec)
        validation = held_out(part.images, protocol.training.validation_fraction)
        length = recipe_of(job.spec.method).length
        steps = protocol.steps(part.images - validation, length)
        epochs = protocol.training.epochs * length
        # A forward pass is about a third of a training step.
        evaluated = (epochs * validation + part.test) / protocol.training.batch_size / 3
        result = RECORD_BYTES + epochs * EPOCH_BYTES
        return Estimate(steps, (steps + evaluated) * seconds, checkpoint, result)

    def _cost(self, protocol: Protocol, spec: RunSpec) -> tuple[float, int]:
        """Seconds of a step and bytes of a checkpoint."""
        is_sparse = recipe_of(spec.method).optimizer is not None
        kind = (protocol, "sparse", None) if is_sparse else (protocol, spec.method, spec.density)
        if kind not in self._measured:
            plain = RunSpec("rigl", spec.init, spec.density, 0) if is_sparse else spec
            with torch.random.fork_rng(), warnings.catch_warnings():
                # That so few steps have no mask update in them is no news here.
                warnings.simplefilter("ignore", UserWarning)
                self._measured[kind] = self._measure(protocol, plain)
        return self._measured[kind]

    def _measure(self, protocol: Protocol, spec: RunSpec) -> tuple[float, int]:
        batch = protocol.training.batch_size
        # More than enough for all steps below, whatever is kept for validation.
        share = 1.0 - protocol.training.validation_fraction
        images = noise(int(10 * batch / share) + 1, self._parts[protocol].classes)
        run = Run(protocol, spec, splits_for(protocol, images, self._device))
        run.model.train()
        few = min(FEW_IMAGES, batch)
        self._time(run, few, 1)
        seconds = self._time(run, few, 1) * batch / few
        if few < batch and seconds < LONGEST_STEP:
            seconds = self._time(run, batch, 1)
        if seconds < SLOW_STEP:
            seconds = self._time(run, batch, MEASURED_STEPS)
        return seconds, len(run.checkpoint())

    def _time(self, run: Run, batch_size: int, steps: int) -> float:
        batches = run.splits.train.shuffled(batch_size, run.data_generator)
        start = self._now()
        for _, batch in zip(range(steps), batches, strict=False):
            run.train_step(*batch)
        return (self._now() - start) / steps

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class Plan:
    """What is to be done by so many workers at a time, and about how long it takes."""

    def __init__(self, parts: Sequence[Part], folder: Folder, workers: int = 1) -> None:
        self.parts = parts
        self.folder = folder
        self.workers = workers
        self.agenda = Agenda([job for part in parts for job in part.jobs()], folder)
        self.timing_jobs = [job for part in parts for job in part.timing_jobs()]
        self.estimates: dict[str, Estimate] = {}
        searching = (part for part in parts if SEARCH in part.parts)
        self.searches = [one for part in searching for one in _searches_left(part, folder)]

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
        self.estimates = {job.key: estimator.estimate(job) for job in self.agenda.left}
        runs = pd.DataFrame([self._row(job) for job in self.agenda.left])
        seconds = steps = written = 0
        if len(runs):
            for name, jobs in runs.groupby("name", sort=False):
                begun = f", {jobs.begun.sum()} begun, will resume" if jobs.begun.any() else ""
                say(
                    f"  {name:<40} {len(jobs):>3} x {jobs.steps.iloc[0]:>8,} steps, "
                    f"about {format_duration(jobs.seconds.sum())}{begun}"
                )
            steps, seconds = runs.steps.sum(), runs.seconds.sum() / min(self.workers, len(runs))
            written = runs.result.sum() + runs.checkpoint.nlargest(self.workers).sum()
        trials = pd.DataFrame([self._search_row(estimator, *one) for one in self.searches])
        if len(trials):
            say(
                f"  searches for alpha and delta_t: at most {trials.runs.sum():,} runs, "
                f"{trials.steps.sum():,} steps, about {format_duration(trials.seconds.sum())}"
            )
            steps, seconds = steps + trials.steps.sum(), seconds + trials.seconds.sum()
            written += trials.written.sum()
        count = len(runs) + (trials.runs.sum() if len(trials) else 0)
        workers = f" by {self.workers} workers" if self.workers > 1 else ""
        say(
            f"together {count:,} runs, {steps:,} steps, about {format_duration(seconds)}{workers}, "
            f"writing about {format_bytes(written)}"
        )

    def _row(self, job: Job) -> dict[str, Any]:
        several = f"{job.protocol.name}: " if len(self.parts) > 1 else ""
        begun = self.folder.checkpoint(job.key).exists()
        estimate = self.estimates[job.key]._asdict()
        return {"name": several + job.spec.variant, "begun": begun, **estimate}

    def _search_row(
        self, estimator: Estimator, example: Job, runs: int, at_random: int, seeds: int
    ) -> dict[str, Any]:
        one = estimator.estimate(example)
        # Of the trials that are not drawn at random, each waits for the results of the last one.
        rounds = at_random / max(1, min(self.workers, at_random))
        rounds += (runs - at_random) / min(self.workers, seeds)
        seconds, written = rounds * one.seconds, runs * one.result
        return {"runs": runs, "steps": runs * one.steps, "seconds": seconds, "written": written}


def _searches_left(part: Part, folder: Folder) -> Iterator[tuple[Job, int, int, int]]:
    """Of each search: a run, how many at most, how many of them at random, and those of a trial."""
    search = part.protocol.choices.search
    if search is None:
        return
    # Optuna takes a second to import, and most plans have no search.
    from benchmarks.cifar.search import tunings

    seeds = len(search.seeds)
    for tuning in tunings(part.protocol, part.data):
        left = tuning.left(folder)
        if left:
            example = part.job(tuning.specs(sum(search.alpha) / 2, sum(search.delta_t[:2]) // 2)[0])
            at_random = max(0, search.random_trials - (search.trials - left))
            yield example, left * seeds, at_random * seeds, seeds
