"""All cases one after another, each written to the results file when it ends."""

from __future__ import annotations

import datetime
import gc
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
from benchmarks.overhead.building import (
    PEER_BY_NAME,
    Case,
    Lineup,
    build_model,
    construct,
    line_up,
    sparse_layers,
    time_construction,
)
from benchmarks.overhead.contenders import NEVER, PLAIN, REFERENCE, Contender
from benchmarks.overhead.memory import checkpoint_bytes, resident_bytes
from benchmarks.overhead.peak import peak_of_steps
from benchmarks.overhead.results import Results
from benchmarks.overhead.steps import StepTimer, measure_steps
from benchmarks.overhead.timing import quartiles, run_rounds
from benchmarks.overhead.training import measure_training
from benchmarks.overhead.why import OURSELVES, explain
from benchmarks.overhead.workloads import WORKLOADS

CONSTRUCTIONS = 3


@dataclass(frozen=True)
class Config:
    """What to measure, as it is written beside the results.

    Attributes:
        workloads: Names of models.
        optimizers: Names of inner optimizers.
        densities: Shares of live weights.
        contenders: Who is measured beside the plain optimizer.
        figures: What is measured: steps, training, construction, memory, profile.
        rounds: Rounds of steps that count.
        update_every: Steps between mask updates.
        training_rounds: Rounds of whole training steps that count.
        device: A torch device.
        quick: Whether models are tiny ones, to try the benchmark itself.
    """

    workloads: tuple[str, ...]
    optimizers: tuple[str, ...]
    densities: tuple[float, ...]
    contenders: tuple[str, ...]
    figures: tuple[str, ...]
    rounds: int
    update_every: int
    training_rounds: int
    device: str
    quick: bool


Measure = Callable[[Case, Config, Callable[[], Any]], dict[str, Any]]


def run(config: Config, path: Path) -> None:
    """Measure everything and write ``path``, the results file, anew after every entry.

    Raises:
        MixedResultsError: If the file has results of a quick run and this is none, or vice versa.
    """
    results = Results(path)
    results.check_mixing(config.quick)
    results.peers.update(_peers(config))
    cases = list(
        itertools.starmap(
            Case, itertools.product(config.workloads, config.densities, config.optimizers)
        )
    )
    todo = [
        (case, figures)
        for case in cases
        for figures in config.figures
        if figures != "training" or WORKLOADS[case.workload].make_batch is not None
    ]
    with tqdm(total=sum(_rounds(config, figures) for _, figures in todo), unit="round") as bar:
        for case, figures in todo:
            bar.set_description(f"{case.workload} {case.optimizer} {case.density:g} {figures}")
            entry = {
                "figures": figures,
                **asdict(case),
                **_MEASURES[figures](case, config, bar.update),
            }
            results.put({**entry, "quick": config.quick, "made_with": _made_with(config)})


def _peers(config: Config) -> dict[str, dict[str, str | None]]:
    """Version and reason for absence of every peer that was asked for."""
    known: dict[str, dict[str, str | None]] = {}
    for name in config.contenders:
        if name in PEER_BY_NAME:
            peer = PEER_BY_NAME[name]
            try:
                peer.load()
                reason = None
            except ImportError as error:
                reason = str(error)
            known[name] = {"version": peer.version(), "absent": reason}
    return known


def _rounds(config: Config, figures: str) -> int:
    counts = {
        "steps": config.update_every + config.rounds,
        "training": 1 + config.training_rounds,
        "construction": 1,
        "memory": 1 + len(config.contenders),
        "profile": config.update_every + config.rounds,
    }
    return counts[figures]


def _made_with(config: Config) -> dict[str, Any]:
    settings = ("rounds", "update_every", "training_rounds")
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **{name: getattr(config, name) for name in settings},
        **describe_environment(torch.device(config.device)),
        "cores": os.cpu_count(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
    }


def _measure_steps(case: Case, config: Config, on_round: Callable[[], Any]) -> dict[str, Any]:
    device = torch.device(config.device)
    model = build_model(case.workload, config.quick, device)
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    layers = sparse_layers(model)
    lineup = line_up(case, config.contenders, model, device)
    contenders = construct(lineup, model, case, config.update_every)
    timer = StepTimer(list(sizes), max(sizes.values()), config.update_every, device)
    # A whole cycle, so that the first update is warm too.
    warmup = config.update_every
    run_rounds(contenders, timer, rounds=range(warmup), on_round=on_round)
    masks = {name: contender.masks() for name, contender in contenders.items()}
    rounds = range(warmup, warmup + config.rounds)
    times = measure_steps(contenders, timer, rounds=rounds, on_round=on_round)
    return {
        "parameters": sum(sizes.values()),
        "tensors": len(sizes),
        "sparse_weights": sum(layers.values()),
        "absent": lineup.absent,
        "contenders": {
            name: {
                **times[name],
                **_what_masks_did(masks[name], contender, layers),
                "bytes": resident_bytes(contender),
                "checkpoint": checkpoint_bytes(contender),
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


def _measure_training(case: Case, config: Config, on_round: Callable[[], Any]) -> dict[str, Any]:
    device = torch.device(config.device)
    model = build_model(case.workload, config.quick, device)
    lineup = line_up(case, config.contenders, model, device)
    contenders = construct(_without_reference(lineup), model, case, NEVER)
    times = measure_training(
        contenders,
        WORKLOADS[case.workload].batch(config.quick, device),
        rounds=config.training_rounds,
        device=device,
        on_round=on_round,
    )
    return {"absent": lineup.absent, "contenders": times}


def _without_reference(lineup: Lineup) -> Lineup:
    makers = {name: make for name, make in lineup.makers.items() if name != REFERENCE}
    return Lineup(makers, lineup.absent)


def _measure_construction(
    case: Case, config: Config, on_round: Callable[[], Any]
) -> dict[str, Any]:
    device = torch.device(config.device)
    model = build_model(case.workload, config.quick, device)
    lineup = _without_reference(line_up(case, config.contenders, model, device))
    built = time_construction(lineup, model, case, CONSTRUCTIONS, device)
    on_round()
    milliseconds = {
        name: quartiles([1e3 * seconds for seconds in times]) for name, times in built.items()
    }
    return {"absent": lineup.absent, "contenders": milliseconds}


def _measure_memory(case: Case, config: Config, on_round: Callable[[], Any]) -> dict[str, Any]:
    device = torch.device(config.device)
    model = build_model(case.workload, config.quick, device)
    lineup = line_up(case, config.contenders, model, device)
    del model
    gc.collect()
    peaks = {}
    for name in (PLAIN, *(name for name in config.contenders if name in lineup.makers)):
        peaks[name] = peak_of_steps(case, name, quick=config.quick, device=config.device)
        on_round()
    return {"absent": lineup.absent, "contenders": peaks}


def _measure_profile(case: Case, config: Config, on_round: Callable[[], Any]) -> dict[str, Any]:
    device = torch.device(config.device)
    model = build_model(case.workload, config.quick, device)
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    lineup = line_up(case, [OURSELVES], model, device)
    figures = explain(
        construct(lineup, model, case, config.update_every),
        case,
        StepTimer(list(sizes), max(sizes.values()), config.update_every, device),
        update_every=config.update_every,
        rounds=config.rounds,
        quick=config.quick,
        device=device,
        on_round=on_round,
    )
    return {"parameters": sum(sizes.values()), "absent": lineup.absent, **figures}


_MEASURES: dict[str, Measure] = {
    "steps": _measure_steps,
    "training": _measure_training,
    "construction": _measure_construction,
    "memory": _measure_memory,
    "profile": _measure_profile,
}
