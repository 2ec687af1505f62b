"""What is compared: the plain optimizer, itself once more, and the same optimizer wrapped."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from sparseopt import SparseOptimizer

PLAIN = "plain"
#: A second copy of the plain optimizer: its ratio to the first is the spread of the measurement.
AGAIN = "plain, again"
STATES = ("compact", "masked")

#: The plain optimizer that mask updates are also compared with, whatever the inner optimizer is.
REFERENCE = "adamw-for-loop"

_FAMILIES = {
    "sgd": partial(SGD, lr=0.1, momentum=0.9),
    "adamw": partial(AdamW, lr=1e-3, weight_decay=0.01),
}
# Torch chooses by the device if nothing is said.
_IMPLEMENTATIONS = {
    "for-loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True, "fused": False},
    "fused": {"foreach": False, "fused": True},
}
OPTIMIZERS = tuple(
    f"{family}-{implementation}" for family in _FAMILIES for implementation in _IMPLEMENTATIONS
)


@dataclass(frozen=True)
class Sparsity:
    """How the wrapped contenders are set up.

    Attributes:
        density: Share of the weights that is live.
        update_every: Steps between mask updates.
    """

    density: float
    update_every: int


@dataclass(frozen=True)
class Contender:
    """One optimizer with a copy of the model of its own."""

    name: str
    model: nn.Module
    optimizer: Optimizer

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer trains."""
        return list(self.model.parameters())

    @property
    def is_update_step(self) -> bool:
        """Whether its next step moves masks."""
        return isinstance(self.optimizer, SparseOptimizer) and self.optimizer.is_update_step


def make_inner(name: str, model: nn.Module) -> Optimizer:
    """Make one of :data:`OPTIMIZERS` for the parameters of ``model``."""
    family, _, implementation = name.partition("-")
    return _FAMILIES[family](model.parameters(), **_IMPLEMENTATIONS[implementation])


def make_contenders(
    model: nn.Module,
    optimizer: str,
    sparsity: Sparsity,
    states: Iterable[str],
    *,
    reference: bool,
) -> list[Contender]:
    """Make all contenders, each with a copy of ``model``.

    Args:
        model: The model, on its device.
        optimizer: One of :data:`OPTIMIZERS`.
        sparsity: How the wrapped ones are set up.
        states: The ``state=`` of each of the wrapped ones.
        reference: Whether :data:`REFERENCE` takes part too, if it is not the optimizer itself.
    """
    contenders = [_plain(PLAIN, model, optimizer), _plain(AGAIN, model, optimizer)]
    contenders += [_wrapped(state, model, optimizer, sparsity) for state in states]
    if reference and optimizer != REFERENCE:
        contenders.append(_plain(REFERENCE, model, REFERENCE))
    return contenders


def _plain(name: str, model: nn.Module, optimizer: str) -> Contender:
    model = copy.deepcopy(model)
    return Contender(name, model, make_inner(optimizer, model))


def _wrapped(state: str, model: nn.Module, optimizer: str, sparsity: Sparsity) -> Contender:
    model = copy.deepcopy(model)
    wrapped = SparseOptimizer(
        make_inner(optimizer, model),
        model,
        method="rigl",
        density=sparsity.density,
        init="erk",
        # Every update of the measurement moves the same share of the weights, and none is the last.
        decay="constant",
        total_steps=10**9,
        delta_t=sparsity.update_every,
        seed=0,
        state=state,
    )
    return Contender(state, model, wrapped)
