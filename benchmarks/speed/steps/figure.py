"""The command: the choice of cases, and the measurement of a case."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer

from benchmarks.common.arguments import density, positive
from benchmarks.common.formats import precisions_of
from benchmarks.common.units import MILLI
from benchmarks.speed.kernels.machine import about_machine, file_suffix, keep_freed_memory
from benchmarks.speed.kernels.measuring import quartiles
from benchmarks.speed.records import Record
from benchmarks.speed.steps.workloads import WORKLOADS, Workload, layers_of
from sparseopt import SparseOptimizer, SpeedUp, speed_up
from sparseopt.speedup import kernels
from sparseopt.speedup.timing import time_in_turn

FIGURE = "steps"
#: No mask moves while steps are timed.
NEVER = 10**9
FP32, BF16 = "float32", "bfloat16"
PEERS = ("SparseProp", "SparseLab")
#: From this share of zeros, SparseProp's own functions try a layer.
SPARSEPROP_FROM = 0.8
Step = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        workload: the workload's name.
        init: the distribution of densities; for transformers ``"linear"``.
        density: the density.
    """

    workload: str
    init: str
    density: float

    def __str__(self) -> str:
        return f"{self.workload}, {self.init}, {self.density:g}"

    @property
    def file(self) -> str:
        """The name of its results file."""
        return f"{FIGURE}-{self.workload}-{self.init}-{self.density:g}"


CASES = (
    *(Case("wrn-22-2", init, d) for init in ("uniform", "erk") for d in (0.05, 0.1, 0.2)),
    *(Case("wrn-22-2-dropout", init, 0.1) for init in ("uniform", "erk")),
    *(Case("cifar-resnet50", init, 0.1) for init in ("uniform", "erk")),
    *(Case("densenet", init, 0.1) for init in ("uniform", "erk")),
    *(Case("resnet50", init, 0.1) for init in ("uniform", "erk")),
    Case("gpt", "linear", 0.1),
    Case("vit-s", "linear", 0.1),
)

INITS = tuple(dict.fromkeys(case.init for case in CASES))
DENSITIES = tuple(sorted({case.density for case in CASES}))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this figure."""
    parser.set_defaults(threads=1)
    add = parser.add_argument
    add("--workloads", nargs="+", choices=tuple(WORKLOADS), help="only these")
    add("--inits", nargs="+", choices=INITS, help="only these distributions")
    add("--densities", nargs="+", type=density, choices=DENSITIES, help="only these")
    add("--rounds", type=positive, default=9, help="rounds that count (default: %(default)s)")
    add("--peers", action="store_true", help="time other libraries too, where they are installed")


def measure(options: argparse.Namespace) -> Iterator[tuple[str, Record]]:
    """Time the chosen cases, one after the other."""
    cases = chosen_cases(options)
    if not kernels.available():
        raise SystemExit(f"no kernels to measure: {kernels.why_not()}")
    keep_freed_memory()
    # A library with an OpenMP runtime of its own reads this variable when it is imported.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    about = about_machine(options.threads)
    for case in cases:
        print(case, flush=True)
        record = measure_case(case, options.rounds, about["clock"], with_peers=options.peers)
        yield f"{case.file}{file_suffix(about)}", {**about, **record}


def chosen_cases(options: argparse.Namespace) -> list[Case]:
    """The cases that are chosen by workload, distribution and density.

    Raises:
        argparse.ArgumentError: If there is no such case.
    """
    wanted = {
        "--workloads": options.workloads or tuple(WORKLOADS),
        "--inits": options.inits or INITS,
        "--densities": options.densities or DENSITIES,
    }
    workloads, inits, densities = wanted.values()
    found = [
        case
        for case in CASES
        if case.workload in workloads and case.init in inits and case.density in densities
    ]
    if not found:
        given = " ".join(f"{name} {' '.join(map(str, those))}" for name, those in wanted.items())
        there_are = "; ".join(str(case) for case in CASES if case.workload in workloads)
        raise argparse.ArgumentError(None, f"{given}: no such case; there are {there_are}")
    return found


def measure_case(
    case: Case, rounds: int, clock: str = "thread", *, with_peers: bool = False
) -> Record:
    """Time whole training steps of a network, dense and with live weights only, in turn.

    Returns:
        A record: milliseconds (median and quartiles) of every contender, its speed-up over dense
        steps in each precision, round by round, and the plan and the report of every handle.
    """
    workload = WORKLOADS[case.workload]
    trainer = _Trainer(workload, case)
    precisions = precisions_of(torch.device("cpu"))
    steps = {f"dense, {precision}": trainer.dense(precision) for precision in precisions}
    handles = {}
    for precision in precisions:
        # Where bfloat16 is available, float32 is slower, but it shows the gain on other processors.
        if precision == precisions[-1] or case.workload == "wrn-22-2":
            name = f"speed_up, {precision}"
            steps[name], handles[name] = trainer.sped_up(precision)
    missing = {}
    for name in PEERS if with_peers else ():
        try:
            step = trainer.peer(name)
            if step is not None:
                step()
                steps[name] = step
        # An error of another library is the reason why it does not take part.
        except Exception as error:
            missing[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
    # In the first steps, speed_up measures and chooses.
    times = time_in_turn(steps, rounds=rounds, device="cpu", warmup=2, clock=clock)
    dense = {precision: times[f"dense, {precision}"] for precision in precisions}
    return {
        "workload": case.workload,
        "title": workload.title,
        "init": case.init,
        "density": case.density,
        "batch": workload.batch,
        "rounds": rounds,
        "load": round(os.getloadavg()[0], 1),
        "milliseconds": {name: quartiles(time, MILLI) for name, time in times.items()},
        "speedup": {
            name: {precision: quartiles(base.over(time), 1) for precision, base in dense.items()}
            for name, time in times.items()
            if not name.startswith("dense")
        },
        "missing": missing,
        "plan": {name: handle.plan for name, handle in handles.items()},
        "report": {name: handle.report.splitlines() for name, handle in handles.items()},
    }


def _replace(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, new)


class _Trainer:
    """Makes training steps of one network on one batch."""

    def __init__(self, workload: Workload, case: Case) -> None:
        self._workload = workload
        self._case = case
        torch.manual_seed(0)
        self._inputs, self._targets = workload.inputs(workload.batch)

    def dense(self, precision: str) -> Step:
        """A step of the dense network and the plain optimizer."""
        model = self._model()
        return self._step(model, self._workload.optimizer(model), precision)

    def sped_up(self, precision: str) -> tuple[Step, SpeedUp]:
        """A step of the sparse network, and its speed-up."""
        model, optimizer = self._sparse()
        handle = speed_up(model, optimizer)
        return self._step(model, optimizer, precision), handle

    def peer(self, name: str) -> Step | None:
        """A step of the network with another library's layers; ``None`` if it supports no layer.

        Both libraries compute only in float32.
        """
        model = self._by_sparseprop() if name == "SparseProp" else self._by_sparselab()
        return None if model is None else self._step(model, self._workload.optimizer(model), FP32)

    def _by_sparseprop(self) -> nn.Module:
        from sparseprop.modules import sparsify_if_faster

        model, optimizer = self._sparse()
        sparse = {layer.name.removesuffix(".weight") for layer in optimizer.layers}
        optimizer.detach()
        shapes: dict[str, torch.Size] = {}
        layers = {name: layer for name, layer in layers_of(model) if name in sparse}
        handles = [
            layer.register_forward_pre_hook(
                lambda _, args, name=name: shapes.update({name: args[0].shape})
            )
            for name, layer in layers.items()
        ]
        model(self._inputs)
        for handle in handles:
            handle.remove()
        for name, layer in layers.items():
            if (layer.weight == 0).float().mean() > SPARSEPROP_FROM:
                _replace(model, name, sparsify_if_faster(layer, tuple(shapes[name])))
        return model

    def _by_sparselab(self) -> nn.Module | None:
        if not self._workload.linear_only:
            return None
        import sparselab

        model = self._model()
        layers = [(n, one) for n, one in layers_of(model) if isinstance(one, nn.Linear)]
        for name, layer in layers[:-1]:
            shape = layer.in_features, layer.out_features
            _replace(model, name, sparselab.SparseLinear(*shape, sparsity=1 - self._case.density))
        return model

    def _model(self) -> nn.Module:
        torch.manual_seed(0)
        return self._workload.model().to(memory_format=torch.channels_last)

    def _sparse(self) -> tuple[nn.Module, SparseOptimizer]:
        model, case = self._model(), self._case
        optimizer = SparseOptimizer(
            self._workload.optimizer(model),
            model,
            method="rigl",
            density=case.density,
            init=self._workload.init(case.init, case.density, model),
            total_steps=2 * NEVER,
            delta_t=NEVER,
        )
        return model, optimizer

    def _step(self, model: nn.Module, optimizer: Optimizer, precision: str) -> Step:
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == BF16)

        def step() -> None:
            optimizer.zero_grad()
            with autocast:
                loss = F.cross_entropy(model(self._inputs), self._targets)
            loss.backward()
            optimizer.step()

        return step
