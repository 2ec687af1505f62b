"""Jobs on many machines, by Ray: optional, from the extra ``cluster``."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import torch

from benchmarks.cifar.protocols.methods import MASK_SOURCES, RECIPES
from benchmarks.cifar.protocols.tables import ProtocolError
from benchmarks.cifar.records.results import Record
from benchmarks.cifar.running.stopping import Stop, StoppedError
from benchmarks.cifar.scheduling.display import Display, Silent
from benchmarks.cifar.scheduling.jobs import Agenda, Job
from benchmarks.cifar.scheduling.worker import Setup, Worker
from benchmarks.common.files import write_atomic

LOCAL = "local"
SECONDS_BETWEEN_LOOKS = 1.0
TRIES = 3
ROOT = Path(__file__).resolve().parents[3]


def run_on_cluster(
    setup: Setup, address: str, agenda: Agenda, display: Display, stop: Stop
) -> None:
    """Do everything on the agenda, as many jobs at a time as the machines have room for.

    The job of a worker or a machine that is lost is done again by another; where the folder is on
    a shared file system, from its checkpoint. Results are written here, by this process alone.

    Args:
        setup: What every process has to know; ``threads`` is how many CPUs a job takes.
        address: Of the Ray cluster, or ``"local"`` for one of this machine.
        agenda: The jobs.
        display: What the user sees.
        stop: Looked at all the time.

    Raises:
        StoppedError: If a stop was requested. Jobs go on from their last checkpoints then.
        ProtocolError: If Ray is missing.
    """
    try:
        import ray
    except ImportError:
        raise ProtocolError("--cluster needs Ray: pip install 'sparseopt[cluster]'") from None
    agenda.tidy()
    # Nothing is sent to anybody that the user has not asked for.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    variables = {"PYTHONPATH": path, "OMP_WAIT_POLICY": "passive"}
    ray.init(
        address=None if address == LOCAL else address,
        runtime_env={"env_vars": variables},
        include_dashboard=False,
        log_to_driver=False,
    )
    try:
        Dispatcher(ray, setup, agenda, display).run(stop)
    finally:
        ray.shutdown()


class Dispatcher:
    """Gives jobs to Ray and writes down what comes back."""

    def __init__(self, ray: Any, setup: Setup, agenda: Agenda, display: Display) -> None:
        self.ray = ray
        self.setup = setup
        self.agenda = agenda
        self.display = display
        self.worker = Worker(setup)
        self.doing: dict[Any, Job] = {}
        self.train = ray.remote(
            num_cpus=setup.threads or 1,
            num_gpus=1 if torch.cuda.is_available() else 0,
            max_retries=TRIES,
        )(train_remotely)

    def run(self, stop: Stop) -> None:
        """Until all jobs are done."""
        while True:
            for job in self.agenda.ready(without=list(self.doing.values())):
                self.doing[self.train.remote(self.setup, job, self._masks_of(job.source))] = job
                self.display.say(f"{self.display.title(job)}: submitted")
            if not self.doing and not self.agenda.left:
                return
            if stop.requested:
                for task in self.doing:
                    self.ray.cancel(task, force=True)
                raise StoppedError
            done, _ = self.ray.wait(list(self.doing), timeout=SECONDS_BETWEEN_LOOKS)
            for task in done:
                self._collect(task, self.doing.pop(task))

    def _collect(self, task: Any, job: Job) -> None:
        try:
            record, files = self.ray.get(task)
        except self.ray.exceptions.RayError as error:
            self.display.failed(job, f"{job.title}: {error}")
            self.agenda.fail(job)
            return
        for path, content in files.items():
            write_atomic(self.setup.folder.root / path, content)
        self.worker.conclude(job, record)
        self.display.finished(job, record)

    def _masks_of(self, source: Job | None) -> bytes | None:
        return None if source is None else self.setup.folder.masks(source.key).read_bytes()


def train_remotely(setup: Setup, job: Job, masks: bytes | None) -> tuple[Record, dict[str, bytes]]:
    """Train a job on whatever machine this is.

    Args:
        setup: As on the machine that sent the job; its folders may be others' or this machine's.
        job: The job.
        masks: Content of the file with the masks that it starts with.

    Returns:
        The record, and the content of the other files that the job leaves, by their path in the
        folder.
    """
    folder = setup.folder
    if job.source is not None and masks is not None:
        write_atomic(folder.masks(job.source.key), masks)
    record = _worker(setup).train(job, Silent(), Stop())
    paths = [folder.masks(job.key)] if job.spec.method in MASK_SOURCES else []
    if RECIPES[job.spec.method].leaves_structure:
        paths.append(folder.structure(job.key))
    return record, {path.relative_to(folder.root).as_posix(): path.read_bytes() for path in paths}


@functools.lru_cache(maxsize=1)
def _worker(setup: Setup) -> Worker:
    """One for all jobs of a process, so that the images are read once."""
    return Worker(setup)
