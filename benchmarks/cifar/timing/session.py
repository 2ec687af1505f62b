"""Times of all finished runs of a study, written down one by one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import torch

from benchmarks.cifar.protocols.choices import Timing
from benchmarks.cifar.protocols.methods import RECIPES
from benchmarks.cifar.protocols.protocol import Protocol
from benchmarks.cifar.records.folder import Folder
from benchmarks.cifar.records.results import FinishedRuns, Record, append_result, read_results
from benchmarks.cifar.running.stopping import Stop, StoppedError
from benchmarks.cifar.scheduling.jobs import Job
from benchmarks.cifar.timing.forms import dense_form, form_of
from benchmarks.cifar.timing.inference import FORMATS, measure_inference
from benchmarks.cifar.timing.others import OtherWork
from benchmarks.cifar.timing.training import STEPS, measure_training
from benchmarks.common.environment import describe_environment

#: What of the environment times depend on: elsewhere, they are measured again.
MACHINE = ("processor", "device", "threads", "system", "torch", "sparseopt")


@dataclass(frozen=True)
class Conditions:
    """What times are measured under.

    Args:
        classes: Number of classes of each protocol's data.
        threads: CPU threads.
        device: Where to measure.
    """

    classes: Mapping[Protocol, int]
    threads: int
    device: torch.device


def time_jobs(
    jobs: Sequence[Job],
    folder: Folder,
    conditions: Conditions,
    say: Callable[[str], None],
    stop: Stop,
) -> None:
    """Measure the times of finished runs that have none from this machine, and append them.

    Args:
        jobs: The runs, of protocols with a timing; those that are not finished are left out.
        folder: Has their results, and what they left.
        conditions: What to measure under.
        say: Tells the user what is being done.
        stop: Looked at after each run.

    Raises:
        StoppedError: If a stop was requested.
    """
    if not jobs:
        return
    torch.set_num_threads(conditions.threads)
    environment = describe_environment(conditions.device)
    results = {record["key"]: record for record in read_results(folder.results)}
    known = FinishedRuns(folder.timings)
    for job in jobs:
        record = results.get(job.key)
        key = _key(job, environment)
        if record is None or known.has(key):
            continue
        if RECIPES[job.spec.method].leaves_structure and not folder.structure(job.key).exists():
            say(f"{job.title}: not timed, {folder.structure(job.key).name} is not here")
            continue
        say(f"{job.title}: measuring its times")
        others = OtherWork()
        measured = _measure(job, record, folder, conditions)
        about = {"key": key, "run_key": job.key, "label": job.spec.label}
        about |= {"protocol": job.protocol.label, "config": _config(job)}
        about |= {"environment": environment, "busy_with_others": others.processors()}
        about["finished"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        append_result(folder.timings, about | measured)
        if stop.requested:
            raise StoppedError


def _measure(job: Job, record: Record, folder: Folder, conditions: Conditions) -> Record:
    protocol, timing, device = job.protocol, _timing(job), conditions.device
    classes = conditions.classes[protocol]
    own = form_of(protocol, job.spec, classes, device, folder.structure(job.key))
    dense = dense_form(protocol, classes, device)
    inference = [
        measure_inference(own, dense, batch, timing.rounds, protocol.image_size)
        for batch in timing.batches
    ]
    updates = record["updates"]
    training = measure_training(
        protocol,
        job.spec,
        classes,
        device,
        rounds=timing.training_rounds,
        updates_a_step=0.0 if updates is None else updates["count"] / record["steps"],
    )
    form = {"kind": own.kind, **own.about, "dense_parameters": dense.about["parameters"]}
    return {"form": form, "inference": inference, "training": training}


def _key(job: Job, environment: dict[str, Any]) -> str:
    machine = {name: environment[name] for name in MACHINE}
    text = json.dumps([_config(job), machine], sort_keys=True)
    return f"{job.key}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _config(job: Job) -> dict[str, Any]:
    timing = _timing(job)
    return {
        "batches": list(timing.batches),
        "rounds": timing.rounds,
        "training_rounds": timing.training_rounds,
        "formats": list(FORMATS),
        "steps_a_round": STEPS,
    }


def _timing(job: Job) -> Timing:
    timing = job.protocol.choices.timing
    assert timing is not None
    return timing
