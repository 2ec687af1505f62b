"""The jobs of a session, their order, and an estimate of their time on this machine."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
import torch

from benchmarks.cifar.accounting import matched_density
from benchmarks.cifar.batches import held_out
from benchmarks.cifar.config import Protocol
from benchmarks.cifar.grid import MAIN, SEARCH, TIMING, RunSpec, Study, expand
from benchmarks.cifar.methods import RECIPES, recipe_of
from benchmarks.cifar.records import FinishedRuns, Folder
from benchmarks.cifar.train import run_on_noise
from benchmarks.common.environment import describe_environment, in_words
from benchmarks.common.words import format_duration
from sparseopt.speedup import timing

SEARCHES = "searches for alpha and delta_t"
STATIC = RunSpec("static", "erk", 0.1, 0)
# A step that takes longer, in seconds, is measured on few images, and the time is scaled up.
SLOW_STEP = 1.0
FEW_IMAGES, MEASURED_STEPS = 16, 4


@dataclass(frozen=True)
class Job:
    """One run of one protocol on one data set."""

    protocol: Protocol
    spec: RunSpec
    data: str

    @cached_property
    def key(self) -> str:
        """The run's name in the results file; it changes with every setting and with the data."""
        return self.spec.key(self.protocol, self.data)

    @property
    def title(self) -> str:
        return f"{self.spec.label} ({self.protocol.label})"

    @property
    def source(self) -> Job | None:
        """The job whose final masks are this job's first masks."""
        spec = self.spec.source
        return None if spec is None else Job(self.protocol, spec, self.data)

    @property
    def sources(self) -> list[Job]:
        """The jobs that this job depends on, the first one first."""
        return [] if self.source is None else [*self.source.sources, self.source]

    @property
    def is_source(self) -> bool:
        """Whether a method starts with the masks of this job's method."""
        return any(recipe.masks_from == self.spec.method for recipe in RECIPES.values())

    def is_done(self, finished: FinishedRuns, folder: Folder, dependents: Sequence[Job]) -> bool:
        """Whether the result exists, and also the masks, if a job still has to start with them.

        Args:
            finished: The runs in the results file.
            folder: The folder of the masks.
            dependents: The planned jobs that depend on this job, as in ``Agenda.dependents``.
        """
        if not finished.has(self.key):
            return False
        # In this order: masks are removed after the results of the dependent jobs are written.
        return folder.masks(self.key).exists() or all(
            job.is_done(finished, folder, dependents) for job in dependents if job.source == self
        )


def with_sources(jobs: Iterable[Job]) -> list[Job]:
    """The jobs, without repetition, each after the jobs that it depends on."""
    ordered: dict[str, Job] = {}
    for job in jobs:
        for one in (*job.sources, job):
            ordered.setdefault(one.key, one)
    return list(ordered.values())


class Agenda:
    """The unfinished jobs of a list.

    A job is ready when its initial masks exist. If masks of a finished run are needed but missing,
    the run is repeated for them; its result is not written twice.
    """

    def __init__(self, jobs: Sequence[Job], folder: Folder) -> None:
        self.folder = folder
        self.jobs = with_sources(jobs)
        self.failed: list[Job] = []
        self._finished = FinishedRuns(folder.results)
        self._dependents: dict[str, list[Job]] = {job.key: [] for job in self.jobs}
        for job in self.jobs:
            for source in job.sources:
                self._dependents[source.key].append(job)
        self.left = [job for job in self.jobs if not self._is_done(job)]

    def tidy(self) -> None:
        """Remove the files that killed processes left for finished jobs."""
        for job in self.jobs:
            if job not in self.left:
                self._clean(job)

    def ready(self, *, without: Collection[str] = ()) -> list[Job]:
        """The jobs that can start now, in order."""
        before = self.left
        # Another session may have removed masks that a job of this list still needs.
        self.left = [job for job in with_sources(before) if not self._is_done(job)]
        for job in before:
            if job not in self.left:
                self._clean(job)
        return [job for job in self.left if job.key not in without and self._has_masks(job)]

    def fail(self, job: Job) -> None:
        """Give up a job and the jobs that depend on it."""
        for other in (job, *self.dependents(job)):
            if other in self.left:
                self.failed.append(other)
                self.left.remove(other)

    def dependents(self, job: Job) -> list[Job]:
        """The jobs of the list that depend on a job, directly or through other jobs."""
        return self._dependents[job.key]

    def _is_done(self, job: Job) -> bool:
        return job.is_done(self._finished, self.folder, self.dependents(job))

    def _clean(self, job: Job) -> None:
        self.folder.clear(job.key)
        for source in job.sources:
            if all(map(self._is_done, self.dependents(source))):
                self.folder.masks(source.key).unlink(missing_ok=True)

    def _has_masks(self, job: Job) -> bool:
        return job.source is None or self.folder.masks(job.source.key).exists()


@dataclass(frozen=True)
class Part:
    """A protocol, its parts to run, and the facts about its data.

    Args:
        protocol: The protocol, with the ``choices`` of this session.
        parts: Names of the parts, as in ``Choices.parts``.
        data: The data set's fingerprint; empty if the data is not known.
        images: Number of training images, including those for validation.
    """

    protocol: Protocol
    parts: tuple[str, ...]
    data: str
    images: int

    def jobs(self) -> list[Job]:
        """All runs except the runs of the search."""
        choices = self.protocol.choices
        main = [self.job(spec) for spec in expand(choices)] if MAIN in self.parts else []
        chosen = (study for study in choices.studies if study.name in self.parts)
        return [*main, *(job for study in chosen for job in self._jobs_of(study))]

    def timing_jobs(self) -> list[Job]:
        """The runs whose networks will be timed."""
        timed = self.protocol.choices.timing
        if TIMING not in self.parts or timed is None:
            return []
        (study,) = (one for one in self.protocol.choices.studies if one.name == timed.study)
        return self._jobs_of(study)

    def job(self, spec: RunSpec) -> Job:
        return Job(self.protocol, spec.without_defaults(self.protocol), self.data)

    def steps(self, spec: RunSpec) -> int:
        """Training steps of a run."""
        training = self.protocol.training
        images = self.images - held_out(self.images, training.validation_fraction)
        epochs = training.epochs * recipe_of(spec.method).length
        return epochs * math.ceil(images / training.batch_size)

    def _jobs_of(self, study: Study) -> list[Job]:
        specs = expand(study)
        if study.flops_of is not None:
            match = functools.partial(matched_density, self.protocol, study.flops_of)
            specs = [
                dataclasses.replace(spec, density=match(spec.init, spec.density))
                for spec in specs
                if spec.init and spec.density
            ]
        return [self.job(spec) for spec in specs]


class Plan:
    """The jobs of a session, and an estimate of their time."""

    def __init__(self, parts: Sequence[Part], folder: Folder) -> None:
        self.parts = parts
        self.folder = folder
        self.agenda = Agenda([job for part in parts for job in part.jobs()], folder)
        self.timing_jobs = [job for part in parts for job in part.timing_jobs()]

    def show(self) -> None:
        """Print the jobs."""
        for part in self.parts:
            print(f"{part.protocol.label}: {part.protocol.describe()}")
        jobs, left = len(self.agenda.jobs), len(self.agenda.left)
        print(f"{jobs} runs, {jobs - left} of them finished, {left} to do")
        if self.timing_jobs:
            print(
                f"then the times of {len(self.timing_jobs)} networks, as far as they are not known"
            )

    def measure(self, device: torch.device) -> None:
        """Print the estimated time of every variant's runs, and of all runs one after the other."""
        print(f"measuring a few steps with {in_words(describe_environment(device))}")
        seconds_a_step = functools.cache(functools.partial(_seconds_a_step, device=device))
        rows = []
        for part in self.parts:
            several = f"{part.protocol.name}: " if len(self.parts) > 1 else ""
            left = [job.spec for job in self.agenda.left if job.protocol == part.protocol]
            named = [(several + spec.variant, spec) for spec in left]
            named += [(SEARCHES, spec) for spec in _trials(part)]
            for name, spec in named:
                steps = part.steps(spec)
                rows.append(
                    (name, steps, steps * seconds_a_step(part.protocol, _standing_for(spec)))
                )
        runs = pd.DataFrame(rows, columns=["name", "steps", "seconds"])
        for name, own in runs[runs.name != SEARCHES].groupby("name", sort=False):
            duration = format_duration(own.seconds.sum())
            print(f"  {name:<40} {len(own):>3} x {own.steps.iloc[0]:>8,} steps, about {duration}")
        trials = runs[runs.name == SEARCHES]
        if len(trials):
            print(f"  {SEARCHES}: at most {_sum(trials)}")
        print(f"together {_sum(runs)}, one after the other")


def _sum(runs: pd.DataFrame) -> str:
    duration = format_duration(runs.seconds.sum())
    return f"{len(runs):,} runs, {runs.steps.sum():,} steps, about {duration}"


def _trials(part: Part) -> list[RunSpec]:
    """As many runs as a search makes at most; each stands for a run with a trial's settings."""
    search = part.protocol.choices.search
    if search is None or SEARCH not in part.parts:
        return []
    places = itertools.product(search.inits, search.densities, search.seeds)
    return [RunSpec(search.method, *place) for place in places] * search.trials


def _standing_for(spec: RunSpec) -> RunSpec:
    """One run for all runs whose steps take the same time: sparse methods train one network."""
    is_sparse = recipe_of(spec.method).optimizer is not None
    return STATIC if is_sparse else RunSpec(spec.method, None, spec.density, 0)


def _seconds_a_step(protocol: Protocol, spec: RunSpec, device: torch.device) -> float:
    batch_size = protocol.training.batch_size
    run = run_on_noise(protocol, spec, device)

    def measure(size: int) -> float:
        batch = next(run.splits.train.shuffled(size, run.data_generator))
        return timing.seconds(lambda: run.train_step(*batch), device=device)

    few = min(FEW_IMAGES, batch_size)
    measure(few)
    seconds = measure(few) * batch_size / few
    if seconds > SLOW_STEP:
        return seconds
    return min(measure(batch_size) for _ in range(MEASURED_STEPS))
