"""Wall times of trained networks, measured in turn with dense networks."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
from torch import Tensor, nn

from benchmarks.cifar.config import Protocol
from benchmarks.cifar.data import IMAGE_SIZE
from benchmarks.cifar.grid import DENSE_RUN, RunSpec, Timing
from benchmarks.cifar.methods import recipe_of
from benchmarks.cifar.models import build_model
from benchmarks.cifar.plan import Job
from benchmarks.cifar.records import FinishedRuns, Record, append_result, read_results
from benchmarks.cifar.structure import Structure
from benchmarks.cifar.train import run_on_noise
from benchmarks.cifar.worker import Setup
from benchmarks.common.environment import describe_environment
from benchmarks.common.formats import FORMATS, placed
from benchmarks.common.rounds import Quartiles, Rounds, quartiles
from benchmarks.common.units import MILLI
from sparseopt import SparseOptimizer, compact, condense
from sparseopt.speedup import timing

DENSE, ZEROS, COMPACTED = "dense", "dense tensors with zeros", "compacted"
#: An implementation of a network, beside those in each number format.
CONDENSED = "condensed"
#: The parts of the environment that times depend on; if they differ, times are measured again.
MACHINE = ("processor", "device", "threads", "system", "torch", "sparseopt")
#: A single image takes little time, and varies the most.
MORE_ROUNDS_OF_ONE = 4
#: Steps of a round; if the method moves masks, the last step is a mask update.
STEPS = 4
#: The timed part of a run is so short that the drop fraction keeps its first value.
STRETCH = 20


def time_jobs(jobs: Sequence[Job], setup: Setup, threads: int) -> None:
    """Measure finished runs that have no times from this machine, and append the times."""
    if not jobs:
        return
    torch.set_num_threads(threads)
    folder, device = setup.folder, setup.device
    environment = describe_environment(device)
    results = {record["key"]: record for record in read_results(folder.results)}
    known = FinishedRuns(folder.timings)
    dense: dict[Protocol, Form] = {}
    for job in jobs:
        timed = job.protocol.choices.timing
        assert timed is not None
        config = timed.model_dump(mode="json", exclude={"study"})
        config |= {"formats": [*FORMATS, CONDENSED], "steps_a_round": STEPS}
        text = json.dumps([config, {name: environment[name] for name in MACHINE}], sort_keys=True)
        key = f"{job.key}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        record, structure = results.get(job.key), folder.structure(job.key)
        if record is None or known.has(key):
            continue
        if recipe_of(job.spec.method).leaves_structure and not structure.exists():
            print(f"{job.title}: not timed, because {structure.name} is missing")
            continue
        print(f"{job.title}: measuring its times")
        process = psutil.Process()
        # These calls start the counting; the next calls return the load since then, in per cent.
        psutil.cpu_percent()
        process.cpu_percent()
        if job.protocol not in dense:
            dense[job.protocol] = form_of(job.protocol, DENSE_RUN, device)
        measured = _measure(job, timed, record, dense[job.protocol], structure, device)
        others = psutil.cpu_percent() * psutil.cpu_count() - process.cpu_percent()
        measured |= {
            "key": key,
            "run_key": job.key,
            "label": job.spec.label,
            "protocol": job.protocol.label,
            "config": config,
            "environment": environment,
            "busy_with_others": round(max(0.0, others / 100), 2),
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        append_result(folder.timings, measured)


def _measure(
    job: Job, timed: Timing, record: Record, dense: Form, structure: Path, device: torch.device
) -> Record:
    protocol = job.protocol
    own = form_of(protocol, job.spec, device, structure)
    updates = record["updates"]
    rate = 0.0 if updates is None else updates["count"] / record["steps"]
    return {
        "form": {"kind": own.kind, **own.about, "dense_parameters": dense.about["parameters"]},
        "inference": [measure_inference(own, dense, one, timed.rounds) for one in timed.batches],
        "training": measure_training(protocol, job.spec, device, timed.training_rounds, rate),
    }


@dataclasses.dataclass(frozen=True)
class Form:
    """A network for inference, its form, and some numbers about it."""

    kind: str
    model: nn.Module
    about: dict[str, Any]
    _condensed: dict[tuple[int, int], nn.Module] = dataclasses.field(default_factory=dict)

    def condensed(self, images: Tensor, threads: int) -> nn.Module:
        """The network as ``condense`` returns it for this batch and number of threads.

        ``condense`` takes seconds, so each network is condensed once.
        """
        key = len(images), threads
        if key not in self._condensed:
            torch.set_num_threads(threads)
            self._condensed[key] = condense(
                self.model, "nonzero", example_inputs=images, precision="fastest", compiled=False
            ).model
        return self._condensed[key]


def form_of(
    protocol: Protocol, spec: RunSpec, device: torch.device, structure: Path | None = None
) -> Form:
    """The network of a run, in the fastest form that computes the same.

    The weights are new random numbers, because the time does not depend on their values. Masks that
    the form cannot use are random too, because only the number of zeros matters.
    """
    torch.manual_seed(spec.seed)
    model = build_model(protocol, spec).to(device).eval()
    recipe, kind, about = recipe_of(spec.method), DENSE, {}
    if recipe.leaves_structure:
        assert structure is not None
        optimizer = Structure.load(structure).put_into(model)
        # Enough images for BatchNorm.
        images = torch.zeros(4, 3, IMAGE_SIZE, IMAGE_SIZE, device=device)
        compacted = compact(model, optimizer, example_inputs=images)
        optimizer.detach()
        model, kind = compacted.model.eval(), COMPACTED
        about = {"share_reached": compacted.report.share_reached}
    elif recipe.optimizer is not None:
        assert spec.init is not None
        assert spec.density is not None
        inner = torch.optim.SGD(model.parameters(), lr=0.0)
        init, seed = spec.init, spec.seed
        SparseOptimizer(
            inner, model, method="static", init=init, density=spec.density, seed=seed
        ).detach()
        kind = ZEROS
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Form(kind, model, {"parameters": parameters, **about})


def measure_inference(own: Form, dense: Form, batch: int, rounds: int) -> dict[str, Any]:
    """Median times of a forward pass, and their ratio in the same round.

    Returns:
        ``batch`` and what :func:`compare` finds. The implementations are the network in each number
        format, and the condensed network, which skips zeros. Each is measured with one thread and
        with as many as torch has now, because a small network may wait for threads longer than it
        computes.
    """
    device = next(dense.model.parameters()).device
    images = torch.randn(batch, 3, IMAGE_SIZE, IMAGE_SIZE).to(device)
    threads = torch.get_num_threads()
    implementations = {}
    for side, form in (("own", own), ("dense", dense)):
        in_formats = {name: placed(form.model, images, name) for name in FORMATS}
        for count in {1, threads} if device.type == "cpu" else {threads}:
            forms = {**in_formats, CONDENSED: (form.condensed(images, count), images)}
            words = f"{count} {'thread' if count == 1 else 'threads'}"
            for name, (model, inputs) in forms.items():
                implementations[f"{side}, {name}, {words}"] = functools.partial(
                    _seconds, model, inputs, count
                )
    torch.set_num_threads(threads)
    with torch.inference_mode():
        for run in implementations.values():
            run()
        times = rounds * MORE_ROUNDS_OF_ONE if batch == 1 else rounds
        measured = timing.in_turn(implementations, rounds=times)
    torch.set_num_threads(threads)
    return {"batch": batch, **compare(measured)}


def _seconds(model: nn.Module, images: Tensor, threads: int) -> float:
    torch.set_num_threads(threads)
    return timing.seconds(lambda: model(images), device=images.device)


def compare(seconds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The fastest implementation of each of two networks, and their times' ratio in the same round.

    Returns:
        The ``implementation`` of each side and its quartiles, the ``ratio``'s quartiles, and the
        ``medians`` of all implementations, in milliseconds.

    Example:
        >>> found = compare([{"own, a": 1.0, "dense, a": 4.0, "dense, b": 2.0}])
        >>> found["dense"]["implementation"], found["ratio"]["median"]
        ('b', 0.5)
    """
    rounds = pd.DataFrame(seconds)
    medians = (MILLI * rounds.median()).round(6)
    sides, times = {}, []
    for side in ("own", "dense"):
        name = medians[medians.index.str.startswith(f"{side}, ")].idxmin()
        times.append(rounds[name])
        milliseconds = quartiles(MILLI * rounds[name])
        implementation = name.partition(", ")[2]
        sides[side] = {"implementation": implementation, "milliseconds": milliseconds}
    own, dense = times
    return {**sides, "ratio": quartiles(own / dense), "medians": medians.to_dict()}


def measure_training(
    protocol: Protocol, spec: RunSpec, device: torch.device, rounds: int, updates_a_step: float
) -> dict[str, Any]:
    """Times of training steps, and their ratio to dense steps of the same round.

    Both train on one batch of noise, so that the times do not include the reading of images.

    Returns:
        ``batch``; quartiles of ``own`` and ``dense`` milliseconds of ordinary steps, of the
        ``update`` if there is one, and of the ``ratio``; and ``updates_a_step``.
    """
    runs = (("own", spec), ("dense", DENSE_RUN))
    cycles = {name: _cycle(protocol, one, device, rounds) for name, one in runs}
    for cycle in cycles.values():
        cycle()
    measured = Rounds(timing.in_turn(cycles, rounds=rounds))
    return {
        "batch": protocol.training.batch_size,
        "own": quartiles(MILLI * measured.of("own", "ordinary")),
        "update": quartiles(MILLI * measured.of("own", "update")),
        "dense": quartiles(MILLI * measured.of("dense", "ordinary")),
        "updates_a_step": updates_a_step,
        "ratio": step_ratio(measured, updates_a_step),
    }


def step_ratio(rounds: Rounds, updates_a_step: float) -> Quartiles:
    """Quartiles, over rounds, of the mean time of a method's step over a dense step.

    A round without a mask update has ordinary steps only, as before the start of gradual pruning.

    Example:
        >>> own = {"ordinary": 2.0, "update": 6.0}
        >>> rounds = Rounds([{"own": own, "dense": {"ordinary": 1.0}}])
        >>> step_ratio(rounds, updates_a_step=0.25)["median"]
        3.0
    """
    ordinary = rounds.of("own", "ordinary")
    update = rounds.of("own", "update").fillna(ordinary)
    mean = (1 - updates_a_step) * ordinary + updates_a_step * update
    return rounds.ratio(mean, to=("dense", "ordinary"))


def _cycle(
    protocol: Protocol, spec: RunSpec, device: torch.device, rounds: int
) -> Callable[[], dict[str, float]]:
    """A function that measures the median of ordinary steps, and a mask update after them."""
    training = protocol.training
    longer = training.model_copy(update={"epochs": STRETCH * STEPS * (rounds + 1)})
    longer_protocol = protocol.model_copy(update={"training": longer})
    run = run_on_noise(longer_protocol, dataclasses.replace(spec, delta_t=STEPS), device)
    batch = next(run.splits.train.shuffled(training.batch_size, run.data_generator))

    def measure() -> dict[str, float]:
        taken: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(STEPS):
            is_update = getattr(run.optimizer, "is_update_step", False)
            taken[is_update].append(timing.seconds(lambda: run.train_step(*batch), device=device))
        update = {"update": taken[True][0]} if taken[True] else {}
        return {"ordinary": statistics.median(taken[False]), **update}

    return measure
