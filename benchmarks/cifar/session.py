"""A session: does everything on an agenda by a pool, and shows how it goes."""

from __future__ import annotations

import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from benchmarks.cifar.jobs import Agenda, Job
from benchmarks.cifar.pools import TRIES, Pool
from benchmarks.cifar.records import Record
from benchmarks.cifar.stopping import Stop, StoppedError
from benchmarks.cifar.train import Progress
from benchmarks.common.words import format_duration

SECONDS_BETWEEN_LOOKS = 1.0
# A log file is not a terminal: there a line every half minute is enough.
LOG_INTERVAL = 30.0


class Display:
    """What a session says while it goes on."""

    def __init__(self, estimates: Mapping[str, float]) -> None:
        self._left = dict(estimates)
        self._taken = self._expected = 0.0
        self._numbers: dict[str, int] = {}
        self.jobs = 0

    def title(self, job: Job) -> str:
        """A job's name with its number in the plan."""
        number = self._numbers.setdefault(job.key, len(self._numbers) + 1)
        return f"[{number}/{max(self.jobs, number)}] {job.title}"

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        with tqdm.external_write_mode():
            print(text, flush=True)

    def watch(self, job: Job, steps: int, done: int) -> Callable[[Progress | None], object]:
        """Show the progress of a job that is done here; a ``Watch``."""
        if done:
            self.say(f"{self.title(job)}: resumed at step {done:,} of {steps:,}")
        interval = 0.5 if sys.stderr.isatty() else LOG_INTERVAL
        bar = tqdm(
            desc=self.title(job),
            total=steps,
            initial=done,
            leave=False,
            mininterval=interval,
            maxinterval=max(10.0, interval),
            unit="step",
            dynamic_ncols=True,
        )

        def show(progress: Progress | None) -> None:
            if progress is None:
                bar.close()
                return
            accuracy = progress.validation_accuracy
            known = "-" if accuracy is None else f"{accuracy:.2%}"
            words = f"epoch {progress.epoch}, val {known}, live {progress.density:.3f}"
            bar.set_postfix_str(words, refresh=False)
            bar.update(progress.step - bar.n)

        return show

    def finished(self, job: Job, record: Record, width: int) -> None:
        """Say what a job came to, and how long those that are left take at this pace."""
        self._expected += self._left.pop(job.key, record["seconds"])
        self._taken += record["seconds"]
        left = sum(self._left.values()) * self._taken / max(self._expected, 1e-9)
        rest = f", about {format_duration(left / width)} left" if self._left else ""
        accuracy, duration = record["accuracy"]["test"], format_duration(record["seconds"])
        self.say(f"{self.title(job)}: test accuracy {accuracy:.2%} after {duration}{rest}")

    def failed(self, job: Job, why: str) -> None:
        self._left.pop(job.key, None)
        print(why, file=sys.stderr, flush=True)
        self.say(f"{self.title(job)}: failed, see the error above")


class Session:
    """Does jobs by a pool."""

    def __init__(self, pool: Pool, display: Display, stop: Stop) -> None:
        self.pool = pool
        self.display = display
        self.stop = stop
        self.failed: list[Job] = []
        self._doing: dict[Future[Record | None], Job] = {}
        # What another session has in hand, as far as is known.
        self._elsewhere: set[str] = set()
        self._deaths: Counter[str] = Counter()

    def run(self, agenda: Agenda) -> None:
        """Do everything on an agenda, and note what failed.

        A job that raises an error doesn't take those after it along: a night's work would be lost.

        Raises:
            StoppedError: If a stop was requested. The state of all jobs is saved then.
        """
        agenda.tidy()
        self.display.jobs = max(self.display.jobs, len(agenda.left))
        while agenda.left or self._doing:
            if self.stop.requested:
                self.pool.stop()
                wait(self._doing, LOG_INTERVAL)
                raise StoppedError
            self._hand_out(agenda)
            if not self._doing:
                # What is left is in the hands of another session, or waits for what is.
                time.sleep(SECONDS_BETWEEN_LOOKS)
            done = wait(self._doing, SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED).done
            self._elsewhere.clear()
            for future in done:
                self._collect(future, agenda)
        self.failed += agenda.failed

    def _hand_out(self, agenda: Agenda) -> None:
        doing = {job.key for job in self._doing.values()}
        ready = agenda.ready(without=doing | self._elsewhere)
        # Which job took a process along is not known of several: those that were being done then
        # are done alone.
        suspects = [job for job in ready if self._deaths[job.key]]
        alone = bool(suspects) or any(self._deaths[key] for key in doing)
        room = (1 if alone else self.pool.width) - len(doing)
        for job in (suspects or ready)[: max(0, room)]:
            self._doing[self.pool.submit(job)] = job
            if self.stop.requested:
                break

    def _collect(self, future: Future[Record | None], agenda: Agenda) -> None:
        job = self._doing.pop(future)
        try:
            record = future.result()
        except StoppedError:
            return
        except BrokenProcessPool:
            self._note_death(job, agenda)
        except Exception as error:
            self.display.failed(job, "".join(traceback.format_exception(error)))
            agenda.fail(job)
        else:
            self._deaths.pop(job.key, None)
            if record is None:
                self._elsewhere.add(job.key)
            else:
                self.display.finished(job, record, self.pool.width)

    def _note_death(self, job: Job, agenda: Agenda) -> None:
        self._deaths[job.key] += 1
        if self._deaths[job.key] < TRIES:
            self.display.say(f"{self.display.title(job)}: a process died, trying again")
            return
        # Without memory for it, say, a job must not go on for ever.
        self.display.failed(job, f"{job.title}: its process died {TRIES} times")
        agenda.fail(job)
