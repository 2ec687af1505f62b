"""The contenders of the comparison: each is an optimizer with its own copy of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Any

from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from sparseopt import SparseOptimizer
from sparseopt.distributions import erk

_FAMILIES = {
    "sgd": partial(SGD, lr=0.1, momentum=0.9),
    "adamw": partial(AdamW, lr=1e-3, weight_decay=0.01),
    "adam": partial(Adam, lr=1e-3),
}
# By default torch chooses by the device.
_IMPLEMENTATIONS = {
    "for-loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True, "fused": False},
    "fused": {"foreach": False, "fused": True},
}
#: The inner optimizers, by name.
OPTIMIZERS = tuple(
    f"{family}-{implementation}" for family in _FAMILIES for implementation in _IMPLEMENTATIONS
)
#: The default of the measurement: one implementation of SGD, and all of AdamW.
USUAL = ("sgd-for-loop", "adamw-for-loop", "adamw-foreach", "adamw-fused")

PLAIN = "plain"
#: A second copy of the plain optimizer: its ratio to the first is the spread of the measurement.
AGAIN = "plain, again"
#: The contenders in short tables.
OURSELVES = "sparseopt, live"

#: The plain optimizer that mask updates are also compared with, for every inner optimizer.
REFERENCE = "adamw-for-loop"

#: More steps than any measurement has.
NEVER = 10**8
#: The share of live weights that every update moves: RigL's first share, here without decay.
DROP_FRACTION = 0.3


def make_inner(name: str, parameters: Sequence[Any]) -> Optimizer:
    """Make one of :data:`OPTIMIZERS` for parameters or groups of them."""
    family, _, implementation = name.partition("-")
    return _FAMILIES[family](parameters, **_IMPLEMENTATIONS[implementation])


def sparse_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers to make sparse, convolutions and linear layers, by name."""
    modules = model.named_modules()
    return {name: layer for name, layer in modules if isinstance(layer, nn.Conv2d | nn.Linear)}


@dataclass(frozen=True)
class Sparsity:
    """The density of all sparse layers together, and the steps between mask updates."""

    density: float
    update_every: int

    def by_layer(self, model: nn.Module) -> dict[str, float]:
        """The density that ERK gives each convolution and linear layer, by module name."""
        layers = sparse_layers(model).items()
        return erk({name: tuple(layer.weight.shape) for name, layer in layers}, self.density)


class Contender:
    """One optimizer with its own copy of the model.

    Subclasses override the methods that differ. The inner optimizer is given by name.
    """

    def __init__(self, model: nn.Module, optimizer: str, sparsity: Sparsity) -> None:
        self.model = model
        self.sparsity = sparsity
        self.optimizer: Any = self.prepare(optimizer)

    def prepare(self, optimizer: str) -> Optimizer:
        """Make the optimizer, and make the model sparse."""
        return make_inner(optimizer, list(self.model.parameters()))

    def weights(self, names: Sequence[str]) -> list[Tensor]:
        """Return the parameters with these names in the plain model, as a forward pass uses them.

        Where masks are applied in the forward pass, they are applied now, and a backward pass from
        here masks the gradients.
        """
        return [attrgetter(name)(self.model) for name in names]

    def step(self) -> None:
        """Make one optimizer step: everything after ``backward()`` in a training step."""
        self.optimizer.step()

    @property
    def updates_next(self) -> bool:
        """Whether the next step moves masks."""
        return False

    def before_update(self, samples: int) -> None:
        """Provide the data that an update needs beside gradients, as ``samples`` samples would."""

    def masks(self) -> dict[str, Tensor]:
        """Return copies of the masks by module name, one bool a weight."""
        return {}

    def holders(self) -> tuple[Any, ...]:
        """Return all objects that keep memory between steps."""
        return (self.optimizer, self.model)


class Wrapped(Contender):
    """The optimizer wrapped in :class:`SparseOptimizer` with RigL."""

    state = "live"

    def prepare(self, optimizer: str) -> SparseOptimizer:
        return SparseOptimizer(
            super().prepare(optimizer),
            self.model,
            method="rigl",
            density=self.sparsity.density,
            init="erk",
            alpha=DROP_FRACTION,
            # Every update moves the same share of the weights, and none is the last.
            decay="constant",
            t_end=2 * NEVER,
            delta_t=self.sparsity.update_every,
            seed=0,
            state=self.state,
        )

    @property
    def updates_next(self) -> bool:
        return self.optimizer.is_update_step

    def masks(self) -> dict[str, Tensor]:
        masks = self.optimizer.masks
        return {name.removesuffix(".weight"): mask.clone() for name, mask in masks.items()}


class WrappedMasked(Wrapped):
    """A :class:`Wrapped` with dense optimizer state."""

    state = "masked"
