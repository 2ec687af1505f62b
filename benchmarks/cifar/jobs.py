"""Which runs there are to do, and in what order they can be done."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from benchmarks.cifar.config import Protocol
from benchmarks.cifar.grid import RunSpec
from benchmarks.cifar.records import FinishedRuns, Folder


@dataclass(frozen=True)
class Job:
    """One run of one protocol on one data set."""

    protocol: Protocol
    spec: RunSpec
    data: str

    @cached_property
    def key(self) -> str:
        """The run's name in the results file: any other setting or data gives another one."""
        return self.spec.key(self.protocol, self.data)

    @property
    def title(self) -> str:
        return f"{self.spec.label} ({self.protocol.label})"

    @property
    def source(self) -> Job | None:
        """The job whose masks this one starts with."""
        spec = self.spec.source
        return None if spec is None else Job(self.protocol, spec, self.data)


def with_sources(jobs: Iterable[Job]) -> list[Job]:
    """The jobs, without repetition, each behind the one that it builds on."""
    ordered: dict[str, Job] = {}
    for job in jobs:
        if job.source is not None:
            ordered.setdefault(job.source.key, job.source)
        ordered.setdefault(job.key, job)
    return list(ordered.values())


class Agenda:
    """What is left to do of a list of jobs.

    A job is ready when the masks that it starts with are there. A finished run whose masks are
    needed but gone is done again for them; its result is not written twice.
    """

    def __init__(self, jobs: Sequence[Job], folder: Folder) -> None:
        self.folder = folder
        self.jobs = with_sources(jobs)
        self.failed: list[Job] = []
        self._finished = FinishedRuns(folder.results)
        self._needed = {job.source.key: job for job in self.jobs if job.source is not None}
        self.left = [job for job in self.jobs if not self.is_done(job)]

    def is_done(self, job: Job) -> bool:
        """Whether the job's result is there, and its masks if a job that is left needs them."""
        if not self._finished.has(job.key):
            return False
        dependent = self._needed.get(job.key)
        if dependent is None or self._finished.has(dependent.key):
            return True
        return self.folder.masks(job.key).exists()

    def tidy(self) -> None:
        """Remove what processes that were killed have left of jobs that are done."""
        for job in self.jobs:
            if job not in self.left:
                self._clean(job)

    def ready(self, *, without: Collection[str] = ()) -> list[Job]:
        """What can be begun now, in order."""
        for job in [job for job in self.left if self.is_done(job)]:
            self.left.remove(job)
            self._clean(job)
        return [job for job in self.left if job.key not in without and self._has_masks(job)]

    def fail(self, job: Job) -> None:
        """Give a job up, and those that build on it."""
        for other in [job, *(other for other in self.left if other.source == job)]:
            self.failed.append(other)
            if other in self.left:
                self.left.remove(other)

    def _clean(self, job: Job) -> None:
        self.folder.clear(job.key)
        if job.source is not None:
            self.folder.masks(job.source.key).unlink(missing_ok=True)

    def _has_masks(self, job: Job) -> bool:
        return job.source is None or self.folder.masks(job.source.key).exists()
