"""Times of a training step: dense, masked, without dropped channels, and built by hand."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.structured.measuring import WAYS, interleaved
from benchmarks.structured.models import IMAGE, WORKLOADS, built_by_hand
from sparseopt import (
    ChannelGroup,
    CompactedTraining,
    RigLStruct,
    SparseOptimizer,
    compact,
    find_channel_groups,
)

Record = dict[str, Any]

#: Mask updates are far apart, or every second step: an ordinary one, and the update.
NEVER = 10**9
EVERY_SECOND = 2
CLASSES = 10


def measure_training(workload: str, density: float, batch: int, rounds: int) -> Record:
    """Return medians of whole training steps, in milliseconds, of every model in every way.

    *A pair* is an ordinary step and an update step; where the model is compacted, it becomes whole
    and small again meanwhile.
    """
    torch.manual_seed(0)
    plan = _Plan.make(workload, density)
    with contextlib.ExitStack() as stack:
        calls = {}
        for way in WAYS:
            make = _Maker(plan, batch, way, stack)
            calls[f"dense, {way}"] = make.dense()
            calls[f"masked, {way}"] = make.sparse(NEVER, compacted=False)
            calls[f"compacted, {way}"] = make.sparse(NEVER, compacted=True)
            calls[f"by hand, {way}"] = make.by_hand()
            calls[f"masked pair, {way}"] = _twice(make.sparse(EVERY_SECOND, compacted=False))
            calls[f"compacted pair, {way}"] = _twice(make.sparse(EVERY_SECOND, compacted=True))
        times = interleaved(calls, rounds)
    return {"batch": batch, "rounds": rounds, "milliseconds": times}


@dataclass(frozen=True)
class _Plan:
    """A workload at a density, and what of it is the same in every way."""

    workload: str
    density: float
    groups: Sequence[ChannelGroup]
    smaller: nn.Module

    @staticmethod
    def make(workload: str, density: float) -> _Plan:
        """Find the channels once, and the shapes that are left of the layers."""
        model = WORKLOADS[workload]()
        images = torch.randn(2, *IMAGE)
        plan = _Plan(workload, density, find_channel_groups(model, images), model)
        optimizer = plan.optimizer(model, NEVER)
        return dataclasses.replace(plan, smaller=compact(model, optimizer, images))

    def optimizer(self, model: nn.Module, delta_t: int) -> SparseOptimizer:
        """Wrap a new optimizer of ``model``."""
        return SparseOptimizer(
            _sgd(model),
            model,
            method=RigLStruct(groups=self.groups),
            density=self.density,
            init="uniform",
            total_steps=10 * NEVER,
            delta_t=delta_t,
        )


class _Maker:
    """Makes models with their optimizers, and calls that train them by a step."""

    def __init__(self, plan: _Plan, batch: int, way: str, stack: contextlib.ExitStack) -> None:
        self._plan = plan
        self._stack = stack
        self._bfloat16 = "bfloat16" in way
        self._layout = torch.channels_last if "channels-last" in way else torch.contiguous_format
        self._images = torch.randn(batch, *IMAGE).to(memory_format=self._layout)
        self._labels = torch.randint(0, CLASSES, (batch,))

    def dense(self) -> Callable[[], None]:
        model = self._model()
        return self._step(model, _sgd(model))

    def sparse(self, delta_t: int, *, compacted: bool) -> Callable[[], None]:
        model = self._model()
        optimizer = self._plan.optimizer(model, delta_t)
        if compacted:
            training = CompactedTraining(model, optimizer, self._images[:2])
            self._stack.enter_context(training)
        return self._step(model, optimizer)

    def by_hand(self) -> Callable[[], None]:
        built = built_by_hand(self._plan.smaller).to(memory_format=self._layout)
        return self._step(built, _sgd(built))

    def _model(self) -> nn.Module:
        return WORKLOADS[self._plan.workload]().to(memory_format=self._layout)

    def _step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=self._bfloat16):
                outputs = model(self._images)
            F.cross_entropy(outputs.float(), self._labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return step


def _sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(
        model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4
    )


def _twice(call: Callable[[], None]) -> Callable[[], None]:
    def twice() -> None:
        call()
        call()

    return twice
