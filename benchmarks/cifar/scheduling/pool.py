"""Jobs in several processes of this machine at a time."""

from __future__ import annotations

import dataclasses
import multiprocessing
import signal
import threading
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, Literal

import torch

from benchmarks.cifar.running.stopping import Stop, StoppedError
from benchmarks.cifar.running.training import Progress
from benchmarks.cifar.scheduling.display import Bar, Display
from benchmarks.cifar.scheduling.jobs import Agenda, Job
from benchmarks.cifar.scheduling.worker import Setup, Worker

SECONDS_BETWEEN_LOOKS = 1.0
SECONDS_BETWEEN_MESSAGES = 0.5
# A job that ends its process every time, for want of memory say, must not go on for ever.
TRIES = 3

Message = tuple[Literal["begin", "step", "end", "done", "busy", "stopped", "failed"], Any]


def run_in_pool(setup: Setup, workers: int, agenda: Agenda, display: Display, stop: Stop) -> None:
    """Do everything on the agenda, ``workers`` jobs at a time.

    The job of a process that was killed is done again, from its checkpoint.

    Raises:
        StoppedError: If a stop was requested. The state of all jobs is saved then.
    """
    agenda.tidy()
    gpus = torch.cuda.device_count()
    setups = [
        dataclasses.replace(setup, device=f"cuda:{position % gpus}") if gpus else setup
        for position in range(min(workers, len(agenda.left)))
    ]
    pool = Pool(setups, agenda, display)
    try:
        pool.run(stop)
    finally:
        pool.close()


class Pool:
    """The processes, and what each of them is doing."""

    def __init__(self, setups: Sequence[Setup], agenda: Agenda, display: Display) -> None:
        self.agenda = agenda
        self.display = display
        self.members = [
            Member(setup, Bar(display, position)) for position, setup in enumerate(setups)
        ]
        self.deaths: Counter[str] = Counter()
        self.busy: list[Job] = []

    def run(self, stop: Stop) -> None:
        """Hand out jobs until all are done."""
        looked = time.monotonic()
        while True:
            if stop.requested:
                self._stop()
                raise StoppedError
            if time.monotonic() - looked > SECONDS_BETWEEN_LOOKS:
                # Another session may have let go of them.
                self.busy.clear()
                looked = time.monotonic()
            self._hand_out()
            if not self.agenda.left and all(member.job is None for member in self.members):
                return
            self._listen()
            self._bury_dead()

    def close(self) -> None:
        """End all processes."""
        for member in self.members:
            member.close()

    def _hand_out(self) -> None:
        doing = [member.job for member in self.members if member.job is not None]
        for member in self.members:
            if member.job is None:
                ready = self.agenda.ready(without=doing + self.busy)
                if not ready:
                    return
                member.give(ready[0])
                doing.append(ready[0])

    def _listen(self) -> None:
        watched: dict[Any, Member] = {}
        for member in self.members:
            if member.job is not None:
                watched |= {member.connection: member, member.process.sentinel: member}
        for ready in wait(list(watched), timeout=SECONDS_BETWEEN_LOOKS):
            member = watched[ready]
            if ready is member.connection:
                self._hear(member)

    def _bury_dead(self) -> None:
        for member in self.members:
            if member.job is not None and not member.process.is_alive():
                self._bury(member)

    def _hear(self, member: Member) -> None:
        try:
            kind, value = member.connection.recv()
        except (EOFError, OSError):
            # Dead: what it was doing is seen to when its process has ended.
            member.process.join()
            return
        assert member.job is not None
        if kind == "begin":
            member.bar.begin(member.job, *value)
        elif kind == "step":
            member.bar.step(value)
        elif kind == "end":
            member.bar.end()
        else:
            job, member.job = member.job, None
            if kind == "done":
                self.display.finished(job, value)
            elif kind == "busy":
                self.busy.append(job)
            elif kind == "failed":
                self.display.failed(job, value)
                self.agenda.fail(job)

    def _bury(self, member: Member) -> None:
        job, member.job = member.job, None
        assert job is not None
        member.bar.end()
        self.deaths[job.key] += 1
        how = f"its process ended with status {member.process.exitcode}"
        if self.deaths[job.key] == TRIES:
            self.display.failed(job, f"{job.title}: {how}, {TRIES} times")
            self.agenda.fail(job)
        else:
            self.display.say(f"{self.display.title(job)}: {how}, trying again")
        member.restart()

    def _stop(self) -> None:
        for member in self.members:
            if member.job is not None:
                member.process.terminate()
        for member in self.members:
            while member.job is not None and member.process.is_alive():
                self._listen()


class Member:
    """One process and the job that it has."""

    def __init__(self, setup: Setup, bar: Bar) -> None:
        self.setup = setup
        self.bar = bar
        self.job: Job | None = None
        self._start()

    def give(self, job: Job) -> None:
        self.job = job
        try:
            self.connection.send(job)
        except OSError:
            # It has died waiting; that is noticed, and the job given again.
            self.process.join()

    def restart(self) -> None:
        self.close()
        self._start()

    def close(self) -> None:
        self.connection.close()
        self.process.join(timeout=10.0)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def _start(self) -> None:
        # Forked processes would share the threads of torch, which do not survive it.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(self.setup, theirs))
        self.process.start()
        theirs.close()


def _serve(setup: Setup, connection: Connection) -> None:
    """What a process of the pool does: jobs, until the other end is closed."""
    stop = Stop()
    # Ctrl-C reaches all processes of a terminal; the pool passes it on to those that have a job.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: stop.request())
    _stop_with_parent(stop)
    worker = Worker(setup)
    while not stop.requested:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        reply = _reply(worker, job, Reporter(connection), stop)
        try:
            connection.send(reply)
        except OSError:
            return


def _reply(worker: Worker, job: Job, reporter: Reporter, stop: Stop) -> Message:
    try:
        record = worker.do(job, reporter, stop)
    except StoppedError:
        return "stopped", None
    except Exception:
        return "failed", traceback.format_exc()
    return ("busy", None) if record is None else ("done", record)


def _stop_with_parent(stop: Stop) -> None:
    """Stop in good order when the session has been killed, so that it can be started again."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        stop.request()

    threading.Thread(target=watch, daemon=True).start()


class Reporter:
    """A ``Watcher`` that passes on what it sees, but not every step."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._sent = 0.0
        self._steps = 0

    def begin(self, job: Job, steps: int, done: int) -> None:
        self._steps = steps
        self._send("begin", (steps, done))

    def step(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._sent > SECONDS_BETWEEN_MESSAGES or progress.step == self._steps:
            self._sent = now
            self._send("step", progress)

    def end(self) -> None:
        self._send("end", None)

    def _send(self, kind: str, value: Any) -> None:
        try:
            self._connection.send((kind, value))
        except OSError:
            # The session was killed; this process is about to notice.
            return
