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
    Contender,
    Sparsity,
    Wrapped,
)
from benchmarks.overhead.peers.registry import PEERS
from benchmarks.overhead.workloads import WORKLOADS

PEER_BY_NAME = {peer.name: peer for peer in PEERS}
#: All that a user can choose from; the plain optimizer, twice, is always there.
CHOICES = (*OURS, *PEER_BY_NAME)


@dataclass(frozen=True)
class Case:
    """What all contenders of one measurement share; model and inner optimizer by name."""

    workload: str
    density: float
    optimizer: str


def build_model(workload: str, device: torch.device) -> nn.Module:
    """Make a model with the same weights at each call."""
    torch.manual_seed(0)
    return WORKLOADS[workload].build().to(device)


def line_up(
    case: Case, names: Iterable[str], model: nn.Module, update_every: int
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Make the plain contenders, and of ``names`` those that can take part.

    Returns:
        The contenders by name, each with a copy of ``model``, and why others do not take part.
    """
    wanted = [PLAIN, AGAIN, *names, *([REFERENCE] if case.optimizer != REFERENCE else [])]
    # Those of the last case may be in cycles, and are large.
    gc.collect()
    sparsity = Sparsity(case.density, update_every)
    contenders, absent = {}, {}
    for name in wanted:
        try:
            contenders[name] = maker(name)(copy.deepcopy(model), case.optimizer, sparsity)
        except ImportError as error:
            absent[name] = str(error)
    return contenders, absent


def maker(name: str) -> Callable[[nn.Module, str, Sparsity], Contender]:
    """Return what makes the contender of that name.

    Raises:
        ImportError: If it can't take part, then or when it is called; the message says why.
    """
    if name in (PLAIN, AGAIN):
        return Contender
    if name == REFERENCE:
        return lambda model, _, sparsity: Contender(model, REFERENCE, sparsity)
    return partial(Wrapped, state=OURS[name]) if name in OURS else PEER_BY_NAME[name].load()
