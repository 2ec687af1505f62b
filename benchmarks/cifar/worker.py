"""Runs a job, in any kind of process."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch

from benchmarks.cifar.accounting import count
from benchmarks.cifar.batches import Splits, splits_for
from benchmarks.cifar.config import Protocol
from benchmarks.cifar.data import DIGITS, DataError, load_dataset
from benchmarks.cifar.methods import recipe_of
from benchmarks.cifar.plan import Job
from benchmarks.cifar.records import FinishedRuns, Folder, Record, append_result
from benchmarks.cifar.settings import ProtocolError
from benchmarks.cifar.structure import Structure, load_tensors, save_tensors
from benchmarks.cifar.train import Run, weights_hash
from benchmarks.common.environment import describe_environment
from benchmarks.common.files import remove_unfinished
from sparseopt import SparseOptimizer, final_masks


@dataclass(frozen=True)
class Setup:
    """The settings of every process of a session.

    Args:
        folder: The folder that everything is written to.
        data_dir: The folder of the images; with None, torchvision downloads them.
        threads: CPU threads of a process; None leaves torch's choice.
        imports: Modules to import.
        cuda_graphs: Replay the passes of training as CUDA graphs.
    """

    folder: Folder
    data_dir: Path | None = None
    threads: int | None = None
    imports: tuple[str, ...] = ()
    cuda_graphs: bool = False

    @property
    def device(self) -> torch.device:
        """The GPU of this process, or the CPU if there is no GPU."""
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def do(
    setup: Setup, job: Job, dependents: Sequence[Job] = (), *, show: bool = False
) -> Record | None:
    """Train or resume a job, and append its result.

    Args:
        setup: The settings of the session.
        job: The job.
        dependents: The planned jobs that depend on it. A finished job is repeated if one of them
            lacks its masks.
        show: Show a progress bar.

    Returns:
        The result; None if another process works on the job or has finished it.
    """
    _prepare(setup)
    folder = setup.folder
    with folder.claim(job.key) as is_mine:
        finished = FinishedRuns(folder.results)
        if not is_mine or job.is_done(finished, folder, dependents):
            return None
        checkpoint = folder.checkpoint(job.key)
        remove_unfinished(checkpoint)
        run = new_run(setup, job)
        if run.resume(checkpoint):
            print(f"{job.title}: resumed at step {run.step:,} of {run.total_steps:,}")
        run.finish(checkpoint, job.title if show else None)
        record = _record(setup, job, run)
        if isinstance(run.optimizer, SparseOptimizer):
            if job.is_source:
                save_tensors(folder.masks(job.key), final_masks(run.optimizer))
            if recipe_of(job.spec.method).leaves_structure:
                Structure.of(run.model, run.optimizer).save(folder.structure(job.key))
        if not finished.has(job.key):
            append_result(folder.results, record)
        folder.clear(job.key)
        return record


def new_run(setup: Setup, job: Job) -> Run:
    """The run of a job, before its first step."""
    splits, fingerprint = _splits(job.protocol, setup)
    if fingerprint != job.data:
        raise DataError(
            f"{job.title} was planned for the images {job.data}, but --data-dir has {fingerprint}"
        )
    masks = None if job.source is None else load_tensors(setup.folder.masks(job.source.key))
    return Run(job.protocol, job.spec, splits, masks, cuda_graphs=setup.cuda_graphs)


def import_modules(names: Iterable[str]) -> None:
    """Import the modules of ``--import``, also from the current folder."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ProtocolError(
                f"--import {name}: {error}; it takes modules that can be imported from this "
                "folder, such as my_method for my_method.py"
            ) from error


@functools.lru_cache(maxsize=1)
def _prepare(setup: Setup) -> None:
    import_modules(setup.imports)
    if setup.threads is not None:
        torch.set_num_threads(setup.threads)
    # Resumed runs have to be bit-identical, on a GPU too.
    torch.backends.cudnn.deterministic = True


# Only the last data set is kept: each takes a quarter of a gigabyte in every process.
@functools.lru_cache(maxsize=1)
def _splits(protocol: Protocol, setup: Setup) -> tuple[Splits, str]:
    data_dir = None if protocol.dataset == DIGITS else setup.data_dir
    dataset = load_dataset(protocol.dataset, data_dir, setup.folder.cache)
    return splits_for(protocol, dataset, setup.device), dataset.fingerprint()


def _record(setup: Setup, job: Job, run: Run) -> Record:
    protocol = job.protocol
    validation = run.curve[-1]["validation_accuracy"]
    record = {
        "key": job.key,
        "label": job.spec.label,
        "run": job.spec.as_dict(),
        # A report may be made without the module that registers the method.
        "recipe": dataclasses.asdict(recipe_of(job.spec.method)),
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
        "accuracy": {"validation": validation, "test": run.accuracy(run.splits.test)},
        "curve": run.curve,
        "seconds": round(run.seconds, 3),
        "cpu": {
            "seconds": round(sum(run.cpu_seconds), 3),
            "quiet_ms_a_step": round(1e3 * min(run.cpu_seconds) / run.steps_per_epoch, 3),
        },
        "steps": run.total_steps,
        "density": run.density,
        **count(run),
        "weights_sha256": weights_hash(run.model),
        "environment": describe_environment(setup.device),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if run.speed_up is not None:
        record["plan"] = run.speed_up.plan
    if job.source is not None:
        record["source"] = {"key": job.source.key, "label": job.source.spec.label}
    return record
