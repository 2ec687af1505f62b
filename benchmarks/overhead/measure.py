"""All cases one after another, each written to the results file when it ends."""

from __future__ import annotations

import datetime
import itertools
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.common.environment import describe_environment
from benchmarks.overhead.building import PEER_BY_NAME, Case, build_model, line_up
from benchmarks.overhead.contenders import (
    NEVER,
    OURSELVES,
    PLAIN,
    REFERENCE,
    Contender,
    sparse_layers,
)
from benchmarks.overhead.memory import resident_bytes
from benchmarks.overhead.profiling import measure_profile
from benchmarks.overhead.results import Results
from benchmarks.overhead.rounds import measure_rounds
from benchmarks.overhead.steps import StepTimer, measure_steps
from benchmarks.overhead.training import measure_training
from benchmarks.overhead.workloads import WORKLOADS

#: Cycles of steps, each with one update, that are profiled.
CYCLES = 3


@dataclass(frozen=True)
class Config:
    """How to measure: beside whom, and in how many rounds that count."""

    contenders: tuple[str, ...]
    rounds: int
    update_every: int
    training_rounds: int
    device: torch.device

    def repeated(self, rounds: int, case: Case) -> int:
        """Return a number of rounds, more of them for a model whose steps take no time."""
        return rounds * WORKLOADS[case.workload].repeats


def run(cases: list[Case], figures: list[str], config: Config, path: Path) -> None:
    """Measure all figures of all cases and write ``path``, the results file, after every entry."""
    results = Results(path)
    results.peers.update(_peers(config))
    todo = [
        (case, kind)
        for case, kind in itertools.product(cases, figures)
        if kind != "training" or WORKLOADS[case.workload].make_batch is not None
    ]
    with tqdm(todo, unit="entry") as bar:
        for case, kind in bar:
            bar.set_description(f"{case.workload} {case.optimizer} {case.density:g} {kind}")
            entry = {"figures": kind, **asdict(case), **_MEASURES[kind](case, config)}
            results.put({**entry, "made_with": _made_with(config, case)})


def _peers(config: Config) -> dict[str, dict[str, str | None]]:
    """Version and reason for absence of every peer that was asked for."""
    known: dict[str, dict[str, str | None]] = {}
    for peer in (PEER_BY_NAME[name] for name in config.contenders if name in PEER_BY_NAME):
        known[peer.name] = {"version": peer.version(), "absent": None}
        try:
            peer.load()
        except ImportError as error:
            known[peer.name]["absent"] = str(error)
    return known


def _made_with(config: Config, case: Case) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "rounds": config.repeated(config.rounds, case),
        "update_every": config.update_every,
        "training_rounds": config.repeated(config.training_rounds, case),
        **describe_environment(config.device),
        "cores": os.cpu_count(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }


def _measure_steps(case: Case, config: Config) -> dict[str, Any]:
    model = build_model(case.workload, config.device)
    parameters = dict(model.named_parameters())
    sizes = {name: layer.weight.numel() for name, layer in sparse_layers(model).items()}
    contenders, absent = line_up(case, config.contenders, model, config.update_every)
    timer = StepTimer(parameters, config.device)
    # A whole cycle, so that the first update is warm too.
    measure_rounds(contenders, timer, config.update_every)
    masks = {name: contender.masks() for name, contender in contenders.items()}
    times = measure_steps(contenders, timer, config.repeated(config.rounds, case))
    return {
        "parameters": sum(weight.numel() for weight in parameters.values()),
        "tensors": len(parameters),
        "sparse_weights": sum(sizes.values()),
        "absent": absent,
        "contenders": {
            name: {
                **times[name],
                **_what_masks_did(masks[name], contender, sizes),
                "bytes": resident_bytes(contender),
            }
            for name, contender in contenders.items()
        },
    }


def _what_masks_did(
    before: dict[str, Tensor], contender: Contender, sizes: dict[str, int]
) -> dict[str, Any]:
    """Say which share of the weights of ``sizes`` is live, and which part of those was not.

    A layer without a mask is live as a whole.
    """
    masks = contender.masks()
    if not masks:
        return {"density": None, "moved": None}
    live = sum(int(masks[name].sum()) if name in masks else sizes[name] for name in sizes)
    moved = sum(int((masks[name] & ~before[name]).sum()) for name in sizes if name in masks)
    return {"density": live / sum(sizes.values()), "moved": moved / live}


def _measure_training(case: Case, config: Config) -> dict[str, Any]:
    model = build_model(case.workload, config.device)
    contenders, absent = line_up(case, config.contenders, model, NEVER)
    contenders.pop(REFERENCE, None)
    batch = WORKLOADS[case.workload].batch(config.device)
    rounds = config.repeated(config.training_rounds, case)
    return {
        "absent": absent,
        "contenders": measure_training(contenders, batch, rounds, config.device),
    }


def _measure_profile(case: Case, config: Config) -> dict[str, Any]:
    model = build_model(case.workload, config.device)
    contenders, _ = line_up(case, [OURSELVES], model, config.update_every)
    timer = StepTimer(dict(model.named_parameters()), config.device)
    measure_rounds(contenders, timer, config.update_every)
    profiles = {
        name: measure_profile(contenders[name], timer, CYCLES * config.update_every, config.device)
        for name in (PLAIN, OURSELVES)
    }
    return {"absent": {}, "operators": profiles}


_MEASURES: dict[str, Callable[[Case, Config], dict[str, Any]]] = {
    "steps": _measure_steps,
    "training": _measure_training,
    "profile": _measure_profile,
}
