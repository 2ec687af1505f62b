"""What trains a job: in this process, in one of several, or on another machine."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.cifar.images.batches import Splits, splits_for
from benchmarks.cifar.images.data import load_dataset
from benchmarks.cifar.protocols.methods import MASK_SOURCES, RECIPES
from benchmarks.cifar.protocols.protocol import Protocol as TrainingProtocol
from benchmarks.cifar.records.folder import Folder
from benchmarks.cifar.records.masks import load_masks, save_masks
from benchmarks.cifar.records.results import FinishedRuns, Record, append_result
from benchmarks.cifar.records.structure import Structure
from benchmarks.cifar.records.tensorboard import EventWriter
from benchmarks.cifar.running.accounting import count
from benchmarks.cifar.running.ranks import ALONE, Ranks, device_for
from benchmarks.cifar.running.stopping import Stop
from benchmarks.cifar.running.training import Progress, Run, weights_hash
from benchmarks.cifar.scheduling.jobs import Job
from benchmarks.common.environment import describe_environment
from benchmarks.common.files import remove_unfinished
from sparseopt import SparseOptimizer, final_masks


@dataclass(frozen=True)
class Setup:
    """What every process of a session has to know.

    Args:
        folder: Where everything is written.
        data_dir: Where images come from.
        threads: CPU threads of the process; None leaves torch's choice.
        tensorboard: Whether to write TensorBoard's files.
        device: Name of the device; None takes a GPU where there is one.
    """

    folder: Folder
    data_dir: Path | None = None
    threads: int | None = None
    tensorboard: bool = False
    device: str | None = None


class Watcher(Protocol):
    """What wants to know how a job is going."""

    def begin(self, job: Job, steps: int, done: int) -> None:
        """A job of ``steps`` steps begins, or goes on after ``done`` of them."""

    def step(self, progress: Progress) -> None:
        """One step more."""

    def end(self) -> None:
        """The job has ended, in whatever way."""


class DataChangedError(Exception):
    """The images are not those that the plan was made for."""


class Worker:
    """Trains jobs, one at a time, and writes down what comes out.

    Args:
        setup: Where everything is.
        ranks: The processes that train each job together.
    """

    def __init__(self, setup: Setup, ranks: Ranks = ALONE) -> None:
        self.setup = setup
        self.ranks = ranks
        self.folder = setup.folder
        self._splits: dict[TrainingProtocol, tuple[Splits, str]] = {}
        self._finished = FinishedRuns(self.folder.results)
        if setup.threads is not None:
            torch.set_num_threads(setup.threads)
        # Resumed runs are to be bit-identical, on a GPU too.
        torch.backends.cudnn.deterministic = True

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions and hardware, as they were when the first job began."""
        return describe_environment(self.device, self.ranks.processes)

    @cached_property
    def device(self) -> torch.device:
        name = self.setup.device
        return device_for(self.ranks) if name is None else torch.device(name)

    def do(self, job: Job, watcher: Watcher, stop: Stop) -> Record | None:
        """Train or resume a job and append its result.

        Returns:
            The result; None where another process has the job in hand or has finished it by now.

        Raises:
            StoppedError: If a stop was requested. The job's state is saved then.
        """
        if not self.ranks.is_first:
            return self.train(job, watcher, stop) if self.ranks.from_first(None) else None
        with self.folder.claim(job.key) as is_mine:
            if not self.ranks.from_first(is_mine and not self._is_done(job)):
                return None
            remove_unfinished(self.folder.checkpoint(job.key))
            record = self.train(job, watcher, stop)
            self.conclude(job, record)
            return record

    def train(self, job: Job, watcher: Watcher, stop: Stop) -> Record:
        """Train or resume a job; return what goes to the results file."""
        run = self.new_run(job)
        checkpoint = self.folder.checkpoint(job.key)
        run.resume(checkpoint)
        watcher.begin(job, run.total_steps, run.step)
        writer = EventWriter(self.folder.events(job.key)) if self._writes_events else None
        try:
            outcome = run.finish(checkpoint, watcher.step, stop, writer and writer.epoch)
        finally:
            watcher.end()
            if writer is not None:
                writer.close()
        if self.ranks.is_first:
            self._keep_what_others_need(job, run)
        accuracy = {"validation": outcome.validation_accuracy, "test": outcome.test_accuracy}
        return {**self._description(job, run), "accuracy": accuracy}

    def conclude(self, job: Job, record: Record) -> None:
        """Append a result, unless it is there, and remove what the job needed."""
        if not self._finished.has(job.key):
            append_result(self.folder.results, record)
        self.folder.clear(job.key)

    def new_run(self, job: Job) -> Run:
        """The run of a job, at its beginning."""
        masks = None if job.source is None else load_masks(self.folder.masks(job.source.key))
        return Run(job.protocol, job.spec, self.splits(job), masks, self.ranks)

    def splits(self, job: Job) -> Splits:
        """The images of a job, read once.

        Raises:
            DataChangedError: If they are others than the plan was made for.
        """
        if job.protocol not in self._splits:
            dataset = load_dataset(
                job.protocol.dataset,
                self.setup.data_dir,
                self.folder.cache,
                job.protocol.image_size,
            )
            splits = splits_for(job.protocol, dataset, self.device)
            # Only the last one's: each is a quarter of a gigabyte in every process.
            self._splits = {job.protocol: (splits, dataset.fingerprint())}
        splits, fingerprint = self._splits[job.protocol]
        if fingerprint != job.data:
            raise DataChangedError(
                f"{job.title} was planned for the images {job.data}, but here are {fingerprint}"
            )
        return splits

    @property
    def _writes_events(self) -> bool:
        return self.setup.tensorboard and self.ranks.is_first

    def _is_done(self, job: Job) -> bool:
        if not self._finished.has(job.key):
            return False
        return job.spec.method not in MASK_SOURCES or self.folder.masks(job.key).exists()

    def _keep_what_others_need(self, job: Job, run: Run) -> None:
        if not isinstance(run.optimizer, SparseOptimizer):
            return
        if job.spec.method in MASK_SOURCES:
            save_masks(self.folder.masks(job.key), final_masks(run.optimizer))
        if RECIPES[job.spec.method].leaves_structure:
            Structure.of(run.model, run.optimizer).save(self.folder.structure(job.key))

    def _description(self, job: Job, run: Run) -> Record:
        protocol = job.protocol
        record = {
            "key": job.key,
            "label": job.spec.label,
            "run": job.spec.as_dict(),
            "protocol": {
                "name": protocol.name,
                "reduced": protocol.reduced,
                "label": protocol.label,
                "summary": protocol.summary,
                "description": protocol.describe(),
                "settings": protocol.settings(),
                "full_steps": protocol.full_steps,
            },
            "data": job.data,
            "curve": run.outcome.curve,
            "seconds": round(run.outcome.seconds, 3),
            "steps": run.total_steps,
            "density": run.density,
            **count(run),
            "weights_sha256": weights_hash(run.model),
            "environment": self.environment,
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        if job.source is not None:
            record["source"] = {"key": job.source.key, "label": job.source.spec.label}
        return record
