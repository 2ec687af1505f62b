"""How long runs take: in words, and what is left of a plan."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.cifar.scheduling.jobs import Job


def format_duration(seconds: float) -> str:
    """Seconds as people say them.

    Example:
        >>> format_duration(40), format_duration(3_720), format_duration(300_000)
        ('40 s', '1 h 02 min', '3 days 11 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} days {hours % 24} h"


@dataclass(frozen=True)
class Later:
    """Runs of a search, which are not known before their trial begins.

    Args:
        jobs: How many at most.
        seconds: That each takes alone.
        at_random: How many of them, which come first, wait for no result of another.
        at_a_time: How many of the others are done at a time: each trial waits for the last one.
    """

    jobs: int
    seconds: float
    at_random: int
    at_a_time: int

    def begun(self) -> Later:
        """With one run less."""
        return dataclasses.replace(
            self, jobs=max(0, self.jobs - 1), at_random=max(0, self.at_random - 1)
        )

    def left(self, workers: int) -> float:
        """Seconds until all are done."""
        rounds = self.at_random / max(1, min(workers, self.at_random))
        return self.seconds * (rounds + (self.jobs - self.at_random) / self.at_a_time)


class Forecast:
    """What is left of a plan, corrected by what its finished runs have taken.

    Args:
        estimates: Seconds that each job takes alone, by key, from a calibration.
        workers: How many jobs are done at a time.
        later: What comes after these jobs, by search.
    """

    def __init__(
        self,
        estimates: Mapping[str, float],
        workers: int = 1,
        later: Mapping[Hashable, Later] | None = None,
    ) -> None:
        self._later = dict(later or {})
        self.has_searches = bool(self._later)
        self._estimates = dict(estimates)
        self._workers = workers
        self._done: dict[str, float] = {}
        self._taken = 0.0
        self._expected = 0.0

    def begin_trials(self, search: Hashable, jobs: Sequence[Job], left: Sequence[Job]) -> None:
        """The next runs of a search are known now.

        Args:
            search: As in ``later``.
            jobs: The trials'.
            left: Those of them that are not finished.
        """
        later = self._later.get(search)
        if later is None:
            return
        for job in jobs:
            if job.key not in self._estimates:
                later = later.begun()
                self._estimates[job.key] = later.seconds
            if job not in left:
                self._done[job.key] = 1.0
        self._later[search] = later

    def begin(self, job: Job, done: float) -> None:
        """A job begins or goes on after this share of it."""
        self._done[job.key] = done

    def end(self, job: Job, begun_at: float, seconds: float) -> None:
        """A job has ended after ``seconds`` from where it was begun."""
        self._taken += seconds
        self._expected += (1.0 - begun_at) * self._estimates.get(job.key, seconds)
        self._done[job.key] = 1.0

    def at(self, job: Job, done: float) -> None:
        """This share of a job is done."""
        self._done[job.key] = done

    def left(self) -> float:
        """Seconds until everything is done, or until the longest running job alone would be."""
        pace = self._taken / self._expected if self._expected > 0.0 else 1.0
        each = [
            (1.0 - self._done.get(key, 0.0)) * seconds for key, seconds in self._estimates.items()
        ]
        known = max(sum(each) / self._workers, max(each, default=0.0))
        later = sum(search.left(self._workers) for search in self._later.values())
        return pace * (known + later)
