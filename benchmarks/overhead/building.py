"""From a case to its contenders, each with a copy of the same model."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from benchmarks.overhead.contenders import (
    AGAIN,
    NEVER,
    OURS,
    PLAIN,
    REFERENCE,
    SPARSE_TYPES,
    Contender,
    Sparsity,
    Wrapped,
)
from benchmarks.overhead.peers.registry import PEERS
from benchmarks.overhead.timing import seconds
from benchmarks.overhead.workloads import WORKLOADS

PEER_BY_NAME = {peer.name: peer for peer in PEERS}
#: All that a user can choose from; the plain optimizer, twice, is always there.
CHOICES = (*OURS, *PEER_BY_NAME)

Make = Callable[[nn.Module, str, Sparsity], Contender]


@dataclass(frozen=True)
class Case:
    """What all contenders of one measurement share.

    Attributes:
        workload: Name of the model.
        density: Share of live weights.
        optimizer: Name of the inner optimizer.
    """

    workload: str
    density: float
    optimizer: str


@dataclass(frozen=True)
class Lineup:
    """Who takes part in a case.

    Attributes:
        makers: What makes each contender, by name.
        absent: Why others do not take part, by name.
    """

    makers: dict[str, Make]
    absent: dict[str, str]


def build_model(workload: str, quick: bool, device: torch.device) -> nn.Module:
    """Make a model with the same weights at each call."""
    torch.manual_seed(0)
    return WORKLOADS[workload].build(quick).to(device)


def sparse_layers(model: nn.Module) -> dict[str, int]:
    """Return the number of weights of each layer that is made sparse, by name."""
    return {
        name: module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, SPARSE_TYPES)
    }


def line_up(case: Case, names: Iterable[str], model: nn.Module, device: torch.device) -> Lineup:
    """Find what makes each contender: the plain ones, and of ``names`` those that can take part."""
    makers: dict[str, Make] = {PLAIN: Contender, AGAIN: Contender}
    absent = {}
    for name in names:
        try:
            makers[name] = maker(name, model, device)
        except ImportError as error:
            absent[name] = str(error)
    if case.optimizer != REFERENCE:
        makers[REFERENCE] = maker(REFERENCE, model, device)
    return Lineup(makers, absent)


def maker(name: str, model: nn.Module, device: torch.device) -> Make:
    """Return what makes the contender of that name.

    Raises:
        ImportError: If it can't take part; the message says why.
    """
    if name in (PLAIN, AGAIN):
        return Contender
    if name == REFERENCE:
        return lambda model, _, sparsity: Contender(model, REFERENCE, sparsity)
    if name in OURS:
        return partial(Wrapped, state=OURS[name])
    peer = PEER_BY_NAME[name]
    made = peer.load()
    sparse = [module for module in model.modules() if isinstance(module, SPARSE_TYPES)]
    refusal = peer.refuses(all(isinstance(one, nn.Linear) for one in sparse), device.type)
    if refusal is not None:
        raise ImportError(refusal)
    return made


def construct(
    lineup: Lineup, model: nn.Module, case: Case, update_every: int
) -> dict[str, Contender]:
    """Make every contender, each with a copy of ``model``."""
    # Those of the last case may be in cycles, and are large.
    gc.collect()
    sparsity = Sparsity(case.density, update_every)
    return {
        name: make(copy.deepcopy(model), case.optimizer, sparsity)
        for name, make in lineup.makers.items()
    }


def time_construction(
    lineup: Lineup, model: nn.Module, case: Case, times: int, device: torch.device
) -> dict[str, list[float]]:
    """Return how many seconds each contender takes to make, ``times`` times, in turn."""
    sparsity = Sparsity(case.density, NEVER)
    took: dict[str, list[float]] = {name: [] for name in lineup.makers}
    for _ in range(times):
        for name, make in lineup.makers.items():
            own = copy.deepcopy(model)
            gc.collect()
            took[name].append(seconds(partial(make, own, case.optimizer, sparsity), device))
    return took
