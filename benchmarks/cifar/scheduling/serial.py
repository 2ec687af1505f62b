"""Jobs one after the other in this process, or in all processes of ``torchrun`` together."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence

from benchmarks.cifar.running.stopping import Stop, StoppedError
from benchmarks.cifar.scheduling.display import Bar, Display, Silent
from benchmarks.cifar.scheduling.jobs import Agenda, Job
from benchmarks.cifar.scheduling.worker import Watcher, Worker

SECONDS_BETWEEN_LOOKS = 1.0


def run_serially(worker: Worker, agenda: Agenda, display: Display, stop: Stop) -> None:
    """Do everything on the agenda.

    A job that raises an error doesn't take those after it along: a night's work would be lost.

    Raises:
        StoppedError: If a stop was requested. The state is saved then.
    """
    ranks = worker.ranks
    watcher: Watcher = Bar(display) if ranks.is_first else Silent()
    if ranks.is_first:
        agenda.tidy()
    busy: list[Job] = []
    while True:
        job, is_over = ranks.from_first(_choose(agenda, busy) if ranks.is_first else (None, False))
        if is_over:
            return
        if ranks.any(stop.requested, worker.device):
            raise StoppedError
        if job is None:
            # What is left is in the hands of another session, or waits for what is.
            time.sleep(SECONDS_BETWEEN_LOOKS)
            busy.clear()
        elif not _do(worker, job, agenda, display, watcher, stop):
            busy.append(job)


def _choose(agenda: Agenda, busy: Sequence[Job]) -> tuple[Job | None, bool]:
    ready = agenda.ready(without=busy)
    return (ready[0], False) if ready else (None, not agenda.left)


def _do(
    worker: Worker, job: Job, agenda: Agenda, display: Display, watcher: Watcher, stop: Stop
) -> bool:
    """Whether this process did the job, or tried to."""
    try:
        record = worker.do(job, watcher, stop)
    except StoppedError:
        raise
    except Exception:
        if worker.ranks.processes > 1:
            # The other processes wait in this job for ever: all have to end.
            raise
        display.failed(job, traceback.format_exc())
        agenda.fail(job)
        return True
    if record is None:
        return False
    if worker.ranks.is_first:
        display.finished(job, record)
    return True
