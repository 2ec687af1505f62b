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
    OURS,
    PLAIN,
    REFERENCE,
    SPARSE_TYPES,
    Contender,
    Sparsity,
    Wrapped,
)
from benchmarks.overhead.peers.registry import PEERS
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


def build_model(workload: str, quick: bool, device: torch.device) -> nn.Module:
    """Make a model with the same weights at each call."""
    torch.manual_seed(0)
    return WORKLOADS[workload].build(quick).to(device)


def sparse_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that are made sparse, by name."""
    return {
        name: module for name, module in model.named_modules() if isinstance(module, SPARSE_TYPES)
    }


def line_up(
    case: Case, names: Iterable[str], model: nn.Module, update_every: int
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Make the plain contenders, and of ``names`` those that can take part.

    Returns:
        The contenders by name, each with a copy of ``model``, and why others do not take part.
    """
    makers: dict[str, Make] = {PLAIN: Contender, AGAIN: Contender}
    absent = {}
    for name in names:
        try:
            makers[name] = maker(name, model)
        except ImportError as error:
            absent[name] = str(error)
    if case.optimizer != REFERENCE:
        makers[REFERENCE] = maker(REFERENCE, model)
    # Those of the last case may be in cycles, and are large.
    gc.collect()
    sparsity = Sparsity(case.density, update_every)
    contenders = {
        name: make(copy.deepcopy(model), case.optimizer, sparsity) for name, make in makers.items()
    }
    return contenders, absent


def maker(name: str, model: nn.Module) -> Make:
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
    make = PEER_BY_NAME[name].load()
    only_linear = all(isinstance(layer, nn.Linear) for layer in sparse_layers(model).values())
    refusal = PEER_BY_NAME[name].refuses(only_linear, next(model.parameters()).device.type)
    if refusal is not None:
        raise ImportError(refusal)
    return make
