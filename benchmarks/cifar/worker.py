"""What does a job, in whatever process it is called."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.cifar.accounting import count
from benchmarks.cifar.batches import Splits, splits_for
from benchmarks.cifar.config import Protocol
from benchmarks.cifar.data import DIGITS, load_dataset
from benchmarks.cifar.jobs import Job
from benchmarks.cifar.methods import RECIPES, is_mask_source, recipe_of
from benchmarks.cifar.records import FinishedRuns, Folder, Record, append_result
from benchmarks.cifar.settings import ProtocolError
from benchmarks.cifar.stopping import Stop
from benchmarks.cifar.structure import Structure, load_masks, save_masks
from benchmarks.cifar.train import Progress, Run, weights_hash
from benchmarks.common.environment import describe_environment
from benchmarks.common.files import remove_unfinished
from sparseopt import SparseOptimizer, final_masks

#: Called when a run begins, with its steps and those that are done; returns what to call after each
#: step and at the end, with None.
Watch = Callable[[Job, int, int], Callable[[Progress | None], object]]


@dataclass(frozen=True)
class Setup:
    """What every process of a session has to know.

    Args:
        folder: Where everything is written.
        data_dir: Where images come from.
        threads: CPU threads of the process; None leaves torch's choice.
        device: Name of the device; None takes a GPU where there is one.
        imports: Modules that register methods and inits.
    """

    folder: Folder
    data_dir: Path | None = None
    threads: int | None = None
    device: str | None = None
    imports: tuple[str, ...] = ()

    def chosen_device(self) -> torch.device:
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))


class DataChangedError(Exception):
    """The images are not those that the plan was made for."""


def do(
    setup: Setup, job: Job, stop: Stop | None = None, watch: Watch | None = None
) -> Record | None:
    """Train or resume a job and append its result.

    Returns:
        The result; None where another process has the job in hand or has finished it by now.

    Raises:
        StoppedError: If a stop was requested. The job's state is saved then.
    """
    _prepare(setup)
    folder = setup.folder
    with folder.claim(job.key) as is_mine:
        if not is_mine or _is_done(folder, job):
            return None
        checkpoint = folder.checkpoint(job.key)
        remove_unfinished(checkpoint)
        run = new_run(setup, job)
        run.resume(checkpoint)
        show = watch(job, run.total_steps, run.step) if watch else lambda progress: None
        try:
            run.finish(checkpoint, show, stop)
        finally:
            show(None)
        record = _record(setup, job, run)
        _keep_what_others_need(folder, job, run)
        if not FinishedRuns(folder.results).has(job.key):
            append_result(folder.results, record)
        folder.clear(job.key)
        return record


def new_run(setup: Setup, job: Job) -> Run:
    """The run of a job, at its beginning.

    Raises:
        DataChangedError: If the images are others than the plan was made for.
    """
    splits, fingerprint = _splits(job.protocol, setup)
    if fingerprint != job.data:
        raise DataChangedError(
            f"{job.title} was planned for the images {job.data}, but here are {fingerprint}"
        )
    masks = None if job.source is None else load_masks(setup.folder.masks(job.source.key))
    return Run(job.protocol, job.spec, splits, masks)


def import_modules(names: Iterable[str]) -> None:
    """Import what ``--import`` names, from where the command is given too.

    Raises:
        ProtocolError: If there is no such module.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ProtocolError(
                f"--import {name}: {error}; it takes modules that can be imported from here, such "
                "as my_method for my_method.py in this folder"
            ) from error


@functools.lru_cache(maxsize=1)
def _prepare(setup: Setup) -> None:
    import_modules(setup.imports)
    if setup.threads is not None:
        torch.set_num_threads(setup.threads)
    # Resumed runs are to be bit-identical, on a GPU too.
    torch.backends.cudnn.deterministic = True


# Only the last one's: each is a quarter of a gigabyte in every process.
@functools.lru_cache(maxsize=1)
def _splits(protocol: Protocol, setup: Setup) -> tuple[Splits, str]:
    data_dir = None if protocol.dataset == DIGITS else setup.data_dir
    dataset = load_dataset(protocol.dataset, data_dir, setup.folder.cache)
    return splits_for(protocol, dataset, setup.chosen_device()), dataset.fingerprint()


@functools.cache
def _environment(setup: Setup) -> dict[str, Any]:
    """Versions and hardware, as they were when the first job ended."""
    return describe_environment(setup.chosen_device())


def _is_done(folder: Folder, job: Job) -> bool:
    """Whether the result is there, and the masks too if a run that starts with them is not."""
    finished = FinishedRuns(folder.results)
    if not finished.has(job.key):
        return False
    on_its_masks = [name for name, one in RECIPES.items() if one.masks_from == job.spec.method]
    specs = (dataclasses.replace(job.spec, method=name) for name in on_its_masks)
    used = (finished.has(Job(job.protocol, spec, job.data).key) for spec in specs)
    return not on_its_masks or folder.masks(job.key).exists() or any(used)


def _keep_what_others_need(folder: Folder, job: Job, run: Run) -> None:
    if not isinstance(run.optimizer, SparseOptimizer):
        return
    if is_mask_source(job.spec.method):
        save_masks(folder.masks(job.key), final_masks(run.optimizer))
    if recipe_of(job.spec.method).leaves_structure:
        Structure.of(run.model, run.optimizer).save(folder.structure(job.key))


def _record(setup: Setup, job: Job, run: Run) -> Record:
    protocol = job.protocol
    validation = run.curve[-1]["validation_accuracy"]
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
        "accuracy": {"validation": validation, "test": run.accuracy(run.splits.test)},
        "curve": run.curve,
        "seconds": round(run.seconds, 3),
        "steps": run.total_steps,
        "density": run.density,
        **count(run),
        "weights_sha256": weights_hash(run.model),
        "environment": _environment(setup),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if job.source is not None:
        record["source"] = {"key": job.source.key, "label": job.source.spec.label}
    return record
