"""Three ways to do jobs: here one after the other, in processes of this machine, on a cluster.

All of them call ``worker.do``, which claims a job in the shared folder first, so that no job is
done twice, however many sessions share the folder.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.cifar.jobs import Job
from benchmarks.cifar.records import Record
from benchmarks.cifar.settings import ProtocolError
from benchmarks.cifar.stopping import Stop
from benchmarks.cifar.worker import Setup, Watch, do

LOCAL = "local"
TRIES = 3
SECONDS_BETWEEN_LOOKS = 0.5
ROOT = Path(__file__).resolve().parents[2]


class Pool(Protocol):
    """What jobs are given to, as many at a time as its width says."""

    @property
    def width(self) -> int: ...

    def submit(self, job: Job) -> Future[Record | None]:
        """Do a job; the future has what ``worker.do`` returns or raises."""

    def stop(self) -> None:
        """Have all jobs save their state and end."""


@contextmanager
def open_pool(
    setup: Setup, workers: int, cluster: str | None, stop: Stop, watch: Watch
) -> Iterator[Pool]:
    """The pool that a session asked for.

    Raises:
        ProtocolError: If Ray is missing, or its cluster.
    """
    if cluster is None and workers == 1:
        yield Serial(setup, stop, watch)
        return
    pool = Processes(setup, workers) if cluster is None else Cluster(setup, cluster)
    try:
        yield pool
    finally:
        pool.close()


class Serial:
    """This process, one job after the other."""

    width = 1

    def __init__(self, setup: Setup, stop: Stop, watch: Watch) -> None:
        self._setup = setup
        self._stop = stop
        self._watch = watch

    def submit(self, job: Job) -> Future[Record | None]:
        future: Future[Record | None] = Future()
        try:
            future.set_result(do(self._setup, job, self._stop, self._watch))
        except Exception as error:
            future.set_exception(error)
        return future

    def stop(self) -> None:
        """Nothing is being done."""


class Processes:
    """Processes of this machine, with a GPU each if there are any."""

    def __init__(self, setup: Setup, workers: int) -> None:
        self.width = workers
        self._setup = setup
        # Forked processes would share the threads of torch, which do not survive it.
        self._context = multiprocessing.get_context("spawn")
        self._stop = self._context.Event()
        self._executor = self._start()

    def submit(self, job: Job) -> Future[Record | None]:
        try:
            return self._executor.submit(_do_here, job)
        except BrokenProcessPool:
            self._executor.shutdown(wait=False)
            self._executor = self._start()
            return self._executor.submit(_do_here, job)

    def stop(self) -> None:
        self._stop.set()

    def close(self) -> None:
        self._stop.set()
        self._executor.shutdown(cancel_futures=True)

    def _start(self) -> ProcessPoolExecutor:
        gpus = torch.cuda.device_count()
        devices: Any = self._context.Queue()
        for number in range(self.width):
            devices.put(f"cuda:{number % gpus}" if gpus else self._setup.device)
        given = (self._setup, devices, self._stop)
        return ProcessPoolExecutor(self.width, self._context, _begin, given)


class _Here:
    """What a process of a pool knows of itself."""

    setup: Setup
    stop: Stop
    busy = threading.Lock()


def _begin(setup: Setup, devices: Any, asked: Any) -> None:
    """Begin a process of a pool; it ends in good order with its session or at a ``SIGTERM``."""
    _Here.setup = dataclasses.replace(setup, device=devices.get())
    _Here.stop = Stop(asked)
    ended = threading.Event()
    # Ctrl-C reaches all processes of a terminal; the session passes it on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: ended.set())
    session = multiprocessing.parent_process()
    assert session is not None

    def watch() -> None:
        while not ended.is_set() and not wait([session.sentinel], SECONDS_BETWEEN_LOOKS):
            pass
        _Here.stop.request()
        # Waits for the job that is being saved. An executor has no way to end a process.
        with _Here.busy:
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _do_here(job: Job) -> Record | None:
    with _Here.busy:
        return do(_Here.setup, job, _Here.stop)


class Cluster:
    """A Ray cluster, whose machines see the folder and the images under the same paths.

    The job of a worker or a machine that is lost is done again by another, from its checkpoint.
    """

    def __init__(self, setup: Setup, address: str) -> None:
        try:
            import ray
        except ImportError:
            raise ProtocolError("--cluster needs Ray: pip install 'sparseopt[cluster]'") from None
        # Nothing is sent to anybody that the user has not asked for.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        path = os.pathsep.join([str(ROOT), str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
        variables = {"PYTHONPATH": path, "OMP_WAIT_POLICY": "passive"}
        try:
            ray.init(
                address=None if address == LOCAL else address,
                runtime_env={"env_vars": variables},
                include_dashboard=False,
                log_to_driver=False,
            )
        except (ConnectionError, ValueError) as error:
            raise ProtocolError(
                f"--cluster {address}: {error}; it takes the address of a Ray cluster that is "
                "running, 'auto' to find it, or 'local'"
            ) from error
        folder, data = setup.folder.root.resolve(), setup.data_dir and setup.data_dir.resolve()
        root = dataclasses.replace(setup.folder, root=folder)
        self._setup = dataclasses.replace(setup, folder=root, data_dir=data)
        self._ray = ray
        self._tasks: list[Any] = []
        gpus = 1 if torch.cuda.is_available() else 0
        options = ray.remote(num_cpus=setup.threads or 1, num_gpus=gpus, max_retries=TRIES)
        self._do: Any = options(do)

    @property
    def width(self) -> int:
        """How many runs the machines that have joined by now have CPUs for."""
        cpus = int(self._ray.cluster_resources().get("CPU", 1))
        return max(1, cpus // (self._setup.threads or 1))

    def submit(self, job: Job) -> Future[Record | None]:
        task = self._do.remote(self._setup, job)
        self._tasks.append(task)
        future: Future[Record | None] = task.future()
        return future

    def stop(self) -> None:
        """Jobs go on from their last checkpoints then."""
        for task in self._tasks:
            self._ray.cancel(task, force=True)

    def close(self) -> None:
        self._ray.shutdown()
