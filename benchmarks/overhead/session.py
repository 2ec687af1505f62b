"""All cases one after another, each written to the results file when it ends."""

from __future__ import annotations

import datetime
import gc
import itertools
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.cifar.environment import describe_environment
from benchmarks.cifar.files import write_atomic
from benchmarks.overhead.contenders import Contender, Sparsity, make_contenders
from benchmarks.overhead.memory import resident_bytes
from benchmarks.overhead.steps import measure_steps, summarise_steps
from benchmarks.overhead.training import measure_training_steps, summarise_training
from benchmarks.overhead.workloads import WORKLOADS

#: More than any measurement has rounds.
NEVER = 10**8


@dataclass(frozen=True)
class Config:
    """What to measure, as it is written beside the results.

    Attributes:
        workloads: Names of models.
        optimizers: Names of inner optimizers.
        densities: Shares of live weights.
        states: The ``state=`` of the wrapped contenders.
        rounds: Rounds of steps that count.
        update_every: Steps between mask updates.
        training_step: Whether whole training steps are measured too.
        training_rounds: Rounds of training steps that count.
        batch_size: Samples in a training step.
        device: A torch device.
        quick: Whether models are tiny ones, to try the benchmark itself.
    """

    workloads: tuple[str, ...]
    optimizers: tuple[str, ...]
    densities: tuple[float, ...]
    states: tuple[str, ...]
    rounds: int
    update_every: int
    training_step: bool
    training_rounds: int
    batch_size: int
    device: str
    quick: bool


@dataclass(frozen=True)
class Case:
    """What all contenders of one measurement share."""

    workload: str
    density: float
    optimizer: str


def run(config: Config, results: Path) -> None:
    """Measure everything and write ``results``, a JSON file, anew after every case."""
    device = torch.device(config.device)
    record: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "quick": config.quick,
        "config": asdict(config),
        "environment": {
            **describe_environment(device),
            "cores": os.cpu_count(),
            "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        },
        "steps": [],
        "training_steps": [],
    }
    cases = list(
        itertools.starmap(
            Case, itertools.product(config.workloads, config.densities, config.optimizers)
        )
    )
    trained = [case for case in cases if config.training_step and _can_train(case)]
    total = len(cases) * (config.update_every + config.rounds)
    total += len(trained) * (1 + config.training_rounds)
    with tqdm(total=total, unit="round") as bar:
        for kind, todo, measure in (
            ("steps", cases, _measure_steps),
            ("training_steps", trained, _measure_training),
        ):
            for case in todo:
                bar.set_description(f"{case.workload} {case.optimizer} {case.density:g}")
                record[kind].append(measure(case, config, bar.update))
                write_atomic(results, (json.dumps(record, indent=1) + "\n").encode())


def _can_train(case: Case) -> bool:
    return WORKLOADS[case.workload].sample_shape is not None


def _measure_steps(case: Case, config: Config, on_round: Callable[[], Any]) -> dict[str, Any]:
    contenders = _contenders(case, config, config.update_every, reference=True)
    rounds = measure_steps(
        contenders,
        rounds=config.rounds,
        # A whole cycle, so that the first update is warm too.
        warmup=config.update_every,
        device=torch.device(config.device),
        on_round=on_round,
    )
    times = summarise_steps(rounds)
    return {
        **asdict(case),
        "parameters": sum(parameter.numel() for parameter in contenders[0].parameters),
        "tensors": len(contenders[0].parameters),
        "contenders": {
            contender.name: {**times[contender.name], "bytes": resident_bytes(contender)}
            for contender in contenders
        },
    }


def _measure_training(case: Case, config: Config, on_round: Callable[[], Any]) -> dict[str, Any]:
    rounds = measure_training_steps(
        _contenders(case, config, NEVER, reference=False),
        WORKLOADS[case.workload],
        batch_size=config.batch_size,
        rounds=config.training_rounds,
        device=torch.device(config.device),
        on_round=on_round,
    )
    return {**asdict(case), "contenders": summarise_training(rounds)}


def _contenders(
    case: Case, config: Config, update_every: int, *, reference: bool
) -> list[Contender]:
    # Optimizers of the last case may be in cycles, and are large.
    gc.collect()
    torch.manual_seed(0)
    model = WORKLOADS[case.workload].build(config.quick).to(config.device)
    sparsity = Sparsity(case.density, update_every)
    return make_contenders(model, case.optimizer, sparsity, config.states, reference=reference)
