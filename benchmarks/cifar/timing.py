"""Wall time of trained networks, dense ones in turn with them, written down one by one."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cifar.batches import splits_for
from benchmarks.cifar.config import Protocol
from benchmarks.cifar.data import IMAGE_SIZE, noise
from benchmarks.cifar.forms import Form, form_of
from benchmarks.cifar.grid import RunSpec, Timing
from benchmarks.cifar.jobs import Job
from benchmarks.cifar.methods import recipe_of
from benchmarks.cifar.records import FinishedRuns, Folder, Record, append_result, read_results
from benchmarks.cifar.stopping import Stop, StoppedError
from benchmarks.cifar.train import Run
from benchmarks.cifar.worker import Setup
from benchmarks.common.environment import describe_environment
from sparseopt.speedup import timing

#: What of the environment times depend on: elsewhere, they are measured again.
MACHINE = ("processor", "device", "threads", "system", "torch", "sparseopt")
#: How a network is stored; each of the two counts in the way that is fastest for it.
FORMATS = ("float32", "float32 channels-last", "bfloat16 channels-last")
#: A single image takes little time, and varies the most.
MORE_ROUNDS_OF_ONE = 4
#: Steps of a round; the last one of a method that moves masks is a mask update.
STEPS = 4
#: Of the run that is timed, so little is done that the drop fraction is still what it begins with.
STRETCH = 20
STAT = Path("/proc/stat")
# Of its first line's columns: user, nice, system, both kinds of interrupts, stolen time.
WORK = (1, 2, 3, 6, 7, 8)


def time_jobs(
    jobs: Sequence[Job],
    setup: Setup,
    classes: Mapping[Protocol, int],
    threads: int,
    say: Callable[[str], None],
    stop: Stop,
) -> None:
    """Measure the times of finished runs that have none from this machine, and append them.

    Raises:
        StoppedError: If a stop was requested.
    """
    if not jobs:
        return
    torch.set_num_threads(threads)
    folder, device = setup.folder, setup.chosen_device()
    environment = describe_environment(device)
    results = {record["key"]: record for record in read_results(folder.results)}
    known = FinishedRuns(folder.timings)
    for job in jobs:
        record, key = results.get(job.key), _key(job, environment)
        if record is None or known.has(key):
            continue
        structure = folder.structure(job.key)
        if recipe_of(job.spec.method).leaves_structure and not structure.exists():
            say(f"{job.title}: not timed, {structure.name} is not here")
            continue
        say(f"{job.title}: measuring its times")
        work, begun = _work_of_others(), time.perf_counter()
        measured = _measure(job, record, folder, classes[job.protocol], device)
        measured |= {
            "key": key,
            "run_key": job.key,
            "label": job.spec.label,
            "protocol": job.protocol.label,
            "config": _config(job),
            "environment": environment,
            "busy_with_others": busy_with_others(work, time.perf_counter() - begun),
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        append_result(folder.timings, measured)
        if stop.requested:
            raise StoppedError


def _measure(
    job: Job, record: Record, folder: Folder, classes: int, device: torch.device
) -> Record:
    protocol, config = job.protocol, _timing(job)
    own = form_of(protocol, job.spec, classes, device, folder.structure(job.key))
    dense = form_of(protocol, RunSpec("dense", None, None, 0), classes, device)
    inference = [measure_inference(own, dense, batch, config.rounds) for batch in config.batches]
    updates = record["updates"]
    rate = 0.0 if updates is None else updates["count"] / record["steps"]
    rounds = config.training_rounds
    training = measure_training(protocol, job.spec, classes, device, rounds, rate)
    form = {"kind": own.kind, **own.about, "dense_parameters": dense.about["parameters"]}
    return {"form": form, "inference": inference, "training": training}


def measure_inference(own: Form, dense: Form, batch: int, rounds: int) -> dict[str, Any]:
    """Median times of a forward pass, and their ratio in the same round.

    Returns:
        ``batch``; ``own`` and ``dense``, each with the fastest ``way`` and quartiles of its
        ``milliseconds``; quartiles of their ``ratio``; and the medians in all ``ways``. These
        are the number formats, each with one thread and with as many as torch has now: a small
        network may wait for threads longer than it computes.
    """
    device = next(dense.model.parameters()).device
    images = torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE).to(device)
    placed = {
        f"{side}, {name}": _placed(form.model, images, name)
        for side, form in (("own", own), ("dense", dense))
        for name in FORMATS
    }
    threads = torch.get_num_threads()
    ways = {
        f"{name}, {count} {'thread' if count == 1 else 'threads'}": _pass(*given, count)
        for name, given in placed.items()
        for count in ({1, threads} if device.type == "cpu" else {threads})
    }
    with torch.inference_mode():
        for way in ways.values():
            way()
        times = rounds * MORE_ROUNDS_OF_ONE if batch == 1 else rounds
        measured = timing.in_turn(ways, rounds=times)
    torch.set_num_threads(threads)
    return {"batch": batch, **compare(measured)}


def compare(rounds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The fastest way of either network, and the ratio of the two in the same round.

    Example:
        >>> found = compare([{"own, a": 1.0, "dense, a": 4.0, "dense, b": 2.0}])
        >>> found["dense"]["way"], found["ratio"]["median"]
        ('b', 0.5)
    """
    times = {name: quartiles([1e3 * one[name] for one in rounds]) for name in rounds[0]}
    medians = {name: found["median"] for name, found in times.items()}
    fastest = {
        side: min((name for name in times if name.startswith(f"{side}, ")), key=medians.__getitem__)
        for side in ("own", "dense")
    }
    sides = {
        side: {"way": name.partition(", ")[2], "milliseconds": times[name]}
        for side, name in fastest.items()
    }
    ratio = quartiles([one[fastest["own"]] / one[fastest["dense"]] for one in rounds])
    return {**sides, "ratio": ratio, "ways": medians}


def measure_training(
    protocol: Protocol,
    spec: RunSpec,
    classes: int,
    device: torch.device,
    rounds: int,
    updates_a_step: float,
) -> dict[str, Any]:
    """Times of training steps, as runs make them, and their ratio to dense ones of the same round.

    Both train on one batch of noise: reading images is not in it.

    Returns:
        ``batch``; quartiles of ``own`` and ``dense`` milliseconds of ordinary steps, of the
        ``update`` if there is one, and of the ``ratio``; and ``updates_a_step``.
    """
    dense = RunSpec("dense", None, None, spec.seed)
    cycles = {
        name: _cycle(protocol, one, classes, device, rounds)
        for name, one in (("own", spec), ("dense", dense))
    }
    for cycle in cycles.values():
        cycle()
    measured = timing.in_turn(cycles, rounds=rounds)
    updates = [1e3 * one["own"]["update"] for one in measured if "update" in one["own"]]
    return {
        "batch": protocol.training.batch_size,
        "own": quartiles([1e3 * one["own"]["ordinary"] for one in measured]),
        "update": quartiles(updates) if updates else None,
        "dense": quartiles([1e3 * one["dense"]["ordinary"] for one in measured]),
        "updates_a_step": updates_a_step,
        "ratio": step_ratio(measured, updates_a_step),
    }


def step_ratio(
    rounds: Sequence[Mapping[str, Mapping[str, float]]], updates_a_step: float
) -> dict[str, float]:
    """Quartiles of the mean time of a method's step over a dense one's, by round.

    A round without a mask update, as there are before gradual pruning begins, has ordinary steps
    only.

    Example:
        >>> rounds = [{"own": {"ordinary": 2.0, "update": 6.0}, "dense": {"ordinary": 1.0}}]
        >>> step_ratio(rounds, updates_a_step=0.25)["median"]
        3.0
    """
    ratios = []
    for one in rounds:
        ordinary = one["own"]["ordinary"]
        update = one["own"].get("update", ordinary)
        mean = (1 - updates_a_step) * ordinary + updates_a_step * update
        ratios.append(mean / one["dense"]["ordinary"])
    return quartiles(ratios)


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Count, median and quartiles of ``values``."""
    found = timing.Timing(tuple(values))
    rounded = {name: round(getattr(found, name), 6) for name in ("q1", "median", "q3")}
    return {"count": len(values), **rounded}


def busy_with_others(before: float | None, seconds: float) -> float | None:
    """How many processors other processes kept busy, on average, since ``_work_of_others``."""
    now = _work_of_others()
    if before is None or now is None:
        return None
    return round(max(0.0, now - before) / seconds, 2)


def _work_of_others() -> float | None:
    """Seconds that all processors together worked for others; None where the system tells none."""
    if not STAT.exists():
        return None
    columns = STAT.read_text().splitlines()[0].split()
    worked = sum(int(columns[index]) for index in WORK) / os.sysconf("SC_CLK_TCK")
    return worked - time.process_time()


def _placed(model: nn.Module, images: Tensor, name: str) -> tuple[nn.Module, Tensor]:
    dtype = torch.bfloat16 if "bfloat16" in name else torch.float32
    layout = torch.channels_last if "channels-last" in name else torch.contiguous_format
    own = copy.deepcopy(model).to(dtype=dtype, memory_format=layout)
    return own, images.to(dtype=dtype, memory_format=layout)


def _pass(model: nn.Module, images: Tensor, threads: int) -> Callable[[], float]:
    def measure() -> float:
        torch.set_num_threads(threads)
        return timing.seconds(lambda: model(images), device=images.device)

    return measure


def _cycle(
    protocol: Protocol, spec: RunSpec, classes: int, device: torch.device, rounds: int
) -> Callable[[], dict[str, float]]:
    """Measures an ordinary step, the median of several, and a mask update after them."""
    training = protocol.training
    # Enough for a batch and for an image to validate on, whatever the fraction.
    share = min(training.validation_fraction, 1.0 - training.validation_fraction)
    images = noise(math.ceil((training.batch_size + 1) / share), classes)
    splits = splits_for(protocol, images, device)
    longer = training.model_copy(update={"epochs": STRETCH * STEPS * (rounds + 1)})
    moving = RunSpec(**{**spec.__dict__, "delta_t": STEPS})
    run = Run(protocol.model_copy(update={"training": longer}), moving, splits)
    batch = next(splits.train.shuffled(training.batch_size, run.data_generator))
    run.model.train()

    def measure() -> dict[str, float]:
        taken: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(STEPS):
            is_update = getattr(run.optimizer, "is_update_step", False)
            taken[is_update].append(timing.seconds(lambda: run.train_step(*batch), device=device))
        update = {"update": taken[True][0]} if taken[True] else {}
        return {"ordinary": statistics.median(taken[False]), **update}

    return measure


def _key(job: Job, environment: dict[str, Any]) -> str:
    machine = {name: environment[name] for name in MACHINE}
    text = json.dumps([_config(job), machine], sort_keys=True)
    return f"{job.key}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _config(job: Job) -> dict[str, Any]:
    config = _timing(job).model_dump(mode="json", exclude={"study"})
    return {**config, "formats": list(FORMATS), "steps_a_round": STEPS}


def _timing(job: Job) -> Timing:
    config = job.protocol.choices.timing
    assert config is not None
    return config
