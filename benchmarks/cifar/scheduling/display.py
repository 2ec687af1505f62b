"""Progress on the screen, or in a log: a bar for each worker, and what is left of the plan."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from benchmarks.cifar.records.results import Record
from benchmarks.cifar.running.training import Progress
from benchmarks.cifar.scheduling.durations import Forecast, format_duration
from benchmarks.cifar.scheduling.jobs import Job

# A log file is not a terminal: there a line every half minute is enough.
LOG_INTERVAL = 30.0


class Display:
    """What a session says while it goes on.

    Args:
        forecast: Knows how long the rest takes.
        jobs: Number of jobs to do.
    """

    def __init__(self, forecast: Forecast, jobs: int) -> None:
        self.forecast = forecast
        self.jobs = jobs
        self._begun = 0
        self._numbers: dict[str, int] = {}

    def title(self, job: Job) -> str:
        """A job's name with its number in the plan."""
        if job.key not in self._numbers:
            self._begun += 1
            self._numbers[job.key] = self._begun
        return f"[{self._numbers[job.key]}/{max(self.jobs, self._begun)}] {job.title}"

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        with tqdm.external_write_mode():
            print(text, flush=True)

    def finished(self, job: Job, record: Record) -> None:
        accuracy = record["accuracy"]["test"]
        duration = format_duration(record["seconds"])
        self.say(f"{self.title(job)}: test accuracy {accuracy:.2%} after {duration}")

    def failed(self, job: Job, why: str) -> None:
        print(why, file=sys.stderr, flush=True)
        self.say(f"{self.title(job)}: failed, see the error above")


class Bar:
    """The progress of what one worker does; a ``Watcher``.

    Args:
        display: The session's.
        position: Which line of the screen, from 0.
    """

    def __init__(self, display: Display, position: int = 0) -> None:
        self._display = display
        self._position = position
        self._bar: tqdm[None] | None = None
        self._job: Job | None = None
        self._begun_at = 0.0
        self._start = 0.0

    def begin(self, job: Job, steps: int, done: int) -> None:
        title = self._display.title(job)
        if done:
            self._display.say(f"{title}: resumed at step {done:,} of {steps:,}")
        is_terminal = sys.stderr.isatty()
        interval = 0.5 if is_terminal else LOG_INTERVAL
        self._bar = tqdm(
            desc=title,
            total=steps,
            initial=done,
            # A log has no lines to go back to.
            position=self._position if is_terminal else 0,
            leave=False,
            mininterval=interval,
            maxinterval=max(10.0, interval),
            unit="step",
            dynamic_ncols=True,
        )
        self._job, self._begun_at, self._start = job, done / steps, time.perf_counter()
        self._display.forecast.begin(job, self._begun_at)

    def step(self, progress: Progress) -> None:
        assert self._bar is not None
        assert self._job is not None
        assert self._bar.total
        self._display.forecast.at(self._job, progress.step / self._bar.total)
        accuracy = progress.validation_accuracy
        parts = [
            f"epoch {progress.epoch}",
            "val -" if accuracy is None else f"val {accuracy:.2%}",
            f"live {progress.density:.3f}",
        ]
        if self._display.jobs > 1 or self._display.forecast.has_searches:
            parts.append(f"all in {format_duration(self._display.forecast.left())}")
        self._bar.set_postfix_str(", ".join(parts), refresh=False)
        self._bar.update(progress.step - self._bar.n)

    def end(self) -> None:
        if self._bar is not None and self._job is not None:
            self._bar.close()
            seconds = time.perf_counter() - self._start
            if self._bar.n == self._bar.total:
                self._display.forecast.end(self._job, self._begun_at, seconds)
        self._bar = self._job = None


class Silent:
    """A ``Watcher`` that shows nothing, for all processes of a run but the first."""

    def begin(self, job: Job, steps: int, done: int) -> None:
        return

    def step(self, progress: Progress) -> None:
        return

    def end(self) -> None:
        return
