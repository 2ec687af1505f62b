"""Three pools for jobs: one after the other, in processes of this machine, or on a cluster.

All of them call ``worker.do``, which first claims a job in the shared folder. So no job is done
twice, however many sessions share the folder. A pool runs ``width`` jobs at a time. ``submit``
takes a job and the planned jobs that depend on it, and returns a future for the result of ``do``.
``close`` ends jobs; a later session continues them from their last checkpoints.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.cifar.plan import Agenda, Job
from benchmarks.cifar.records import Folder, Record
from benchmarks.cifar.settings import ProtocolError
from benchmarks.cifar.worker import Setup, do
from benchmarks.common.words import format_duration

TRIES = 3
SECONDS_BETWEEN_LOOKS = 1.0
ROOT = Path(__file__).resolve().parents[2]


class Serial:
    """This process, one job after the other, with a progress bar."""

    width = 1

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    def submit(self, job: Job, dependents: Sequence[Job]) -> Future[Record | None]:
        future: Future[Record | None] = Future()
        try:
            future.set_result(do(self._setup, job, dependents, show=True))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """No job is running."""


class Processes:
    """Processes of this machine, with a GPU each if there are any."""

    def __init__(self, setup: Setup, workers: int) -> None:
        self.width = workers
        self._setup = setup
        # Not "fork", because torch's threads do not survive a fork.
        self._context = multiprocessing.get_context("spawn")
        # This end closes when the session ends, also after a crash.
        self._told, self._end = self._context.Pipe(duplex=False)
        self._executor = self._start()

    def submit(self, job: Job, dependents: Sequence[Job]) -> Future[Record | None]:
        try:
            return self._executor.submit(do, self._setup, job, dependents)
        except BrokenProcessPool:
            self._executor.shutdown(wait=False)
            self._executor = self._start()
            return self.submit(job, dependents)

    def close(self) -> None:
        # An executor would wait for the running jobs, which may take hours.
        self._end.close()
        self._executor.shutdown(cancel_futures=True)
        self._told.close()

    def _start(self) -> ProcessPoolExecutor:
        numbers: Any = self._context.Queue()
        for number in range(self.width):
            numbers.put(number)
        return ProcessPoolExecutor(self.width, self._context, _begin, (numbers, self._told))


def _begin(numbers: Any, told: Connection) -> None:
    """Start a process of a pool; it ends with its session."""
    if torch.cuda.is_available():
        torch.cuda.set_device(numbers.get() % torch.cuda.device_count())
    # Ctrl-C reaches all processes of a terminal; the session ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end_with_session() -> None:
        with suppress(EOFError, OSError):
            told.recv()
        os._exit(1)

    threading.Thread(target=end_with_session, daemon=True).start()


class Cluster:
    """A Ray cluster; if a worker is lost, another continues its job from the checkpoint."""

    def __init__(self, setup: Setup, address: str) -> None:
        try:
            import ray
        except ImportError:
            raise ProtocolError("--cluster needs Ray: pip install 'sparseopt[cluster]'") from None
        # Ray sends usage statistics only if the user asks for it.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        path = os.pathsep.join([str(ROOT), str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
        variables = {"PYTHONPATH": path, "OMP_WAIT_POLICY": "passive"}
        try:
            ray.init(
                address=None if address == "local" else address,
                runtime_env={"env_vars": variables},
                include_dashboard=False,
                log_to_driver=False,
            )
        except (ConnectionError, ValueError) as error:
            raise ProtocolError(
                f"--cluster {address}: {error}; it takes the address of a Ray cluster that is "
                "running, 'auto' to find it, or 'local'"
            ) from error
        folder = Folder(setup.folder.root.resolve())
        data = setup.data_dir and setup.data_dir.resolve()
        self._setup = dataclasses.replace(setup, folder=folder, data_dir=data)
        self._ray = ray
        gpus = 1 if torch.cuda.is_available() else 0
        options = ray.remote(num_cpus=setup.threads or 1, num_gpus=gpus, max_retries=TRIES)
        self._do: Any = options(do)

    @property
    def width(self) -> int:
        """How many runs the CPUs of the machines in the cluster can train at once."""
        cpus = int(self._ray.cluster_resources().get("CPU", 1))
        return max(1, cpus // (self._setup.threads or 1))

    def submit(self, job: Job, dependents: Sequence[Job]) -> Future[Record | None]:
        reference = self._do.remote(self._setup, job, dependents)
        future: Future[Record | None] = reference.future()
        return future

    def close(self) -> None:
        self._ray.shutdown()


Pool = Serial | Processes | Cluster


def open_pool(setup: Setup, workers: int, cluster: str | None) -> Pool:
    """The requested pool; the caller closes it."""
    if cluster is not None:
        return Cluster(setup, cluster)
    return Serial(setup) if workers == 1 else Processes(setup, workers)


class Session:
    """Runs agendas on a pool; if a job raises an error, later jobs still run."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.failed: list[Job] = []
        self._doing: dict[Future[Record | None], Job] = {}
        # The jobs that are known to run in another session.
        self._elsewhere: set[str] = set()
        self._deaths: Counter[str] = Counter()

    def run(self, agenda: Agenda) -> None:
        """Run all jobs of an agenda, and record the failed ones."""
        agenda.tidy()
        while agenda.left or self._doing:
            for job in self._next(agenda):
                self._doing[self.pool.submit(job, agenda.dependents(job))] = job
            if not self._doing:
                # The other jobs run in another session, or depend on such jobs.
                time.sleep(SECONDS_BETWEEN_LOOKS)
            done = wait(self._doing, SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED).done
            self._elsewhere.clear()
            for future in done:
                self._collect(future, agenda)
        self.failed += agenda.failed

    def _next(self, agenda: Agenda) -> list[Job]:
        doing = {job.key for job in self._doing.values()}
        ready = agenda.ready(without=doing | self._elsewhere)
        # If several jobs ran when a process died, any of them may be the cause, so each runs alone.
        suspects = [job for job in ready if self._deaths[job.key]]
        alone = bool(suspects) or any(self._deaths[key] for key in doing)
        room = (1 if alone else self.pool.width) - len(doing)
        return (suspects or ready)[: max(0, room)]

    def _collect(self, future: Future[Record | None], agenda: Agenda) -> None:
        job = self._doing.pop(future)
        try:
            record = future.result()
        except BrokenProcessPool as error:
            self._deaths[job.key] += 1
            if self._deaths[job.key] < TRIES:
                print(f"{job.title}: a process died, trying again")
            else:
                # A job that dies again and again, for lack of memory, must not be tried forever.
                self._fail(job, error, agenda)
        except Exception as error:
            self._fail(job, error, agenda)
        else:
            self._deaths.pop(job.key, None)
            if record is None:
                self._elsewhere.add(job.key)
            else:
                accuracy, duration = record["accuracy"]["test"], format_duration(record["seconds"])
                print(f"{job.title}: test accuracy {accuracy:.2%} after {duration}")

    def _fail(self, job: Job, error: Exception, agenda: Agenda) -> None:
        print("".join(traceback.format_exception(error)), file=sys.stderr)
        print(f"{job.title}: failed, see the error above")
        agenda.fail(job)
