"""The base of both backends that keep the inner optimizer's state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import LBFGS, Optimizer

from sparseopt.masks.drop_and_grow import Transition
from sparseopt.masks.layer import SparseLayer
from sparseopt.optimizer.state.fresh import (
    common_value,
    copied_containers,
    fresh_value,
    is_known,
    noting_first_values,
    tensors_in,
)

__all__ = ["Closure", "StateBackend", "unhooked_step"]

Closure = Callable[[], Any]


def unhooked_step(optimizer: Optimizer) -> Callable[..., Any]:
    """Return the optimizer's own ``step`` without the hooks that torch runs around it.

    The wrapper's ``step`` runs them, so that they run once.
    """
    step = type(optimizer).step
    if getattr(step, "hooked", False):
        step = step.__wrapped__  # type: ignore[attr-defined]
    bound: Callable[..., Any] = step.__get__(optimizer)
    return bound


class StateBackend(ABC):
    """Steps the inner optimizer on live weights, and moves its state along with the masks.

    Args:
        inner: the optimizer.
        layers: its sparse layers; the list is shared and may grow.

    Attributes:
        gathers: whether every step needs the positions of live weights.
        knows_fresh_state: whether the state of a fresh weight is known, not recorded.
    """

    gathers: ClassVar[bool]

    def __init__(self, inner: Optimizer, layers: list[SparseLayer]) -> None:
        self.inner = inner
        self.layers = layers
        self.knows_fresh_state = is_known(inner)
        #: The recorded initial values of state, by layer and name, if they are not known.
        self.noted: dict[tuple[str, str], float] = {}

    @abstractmethod
    def step(self, closure: Closure | None = None) -> Any:
        """Step the inner optimizer so that only live weights and their state change."""

    @abstractmethod
    def load_layer(self, layer: SparseLayer, *, live_only: bool = False) -> None:
        """Bring a layer's state in the inner optimizer into the form of this backend.

        Args:
            layer: the layer, with its mask set.
            live_only: whether the state has one value a live weight now, ``(live,)``, instead of
                the weight's shape.
        """

    @abstractmethod
    def apply_transition(self, layer: SparseLayer, transition: Transition) -> None:
        """Make a transition: the mask, the weight, and the weight's optimizer state together."""

    @abstractmethod
    def to_dense(self) -> None:
        """Bring all state into the form that the inner optimizer has without this library."""

    def dense_entry(self, layer: SparseLayer) -> dict[str, Any]:
        """Return a layer's state in the form of a plain optimizer; nothing changes."""
        entry: dict[str, Any] = copied_containers(self.inner.state[layer.weight])
        return entry

    def materialize(self) -> None:  # noqa: B027
        """Restore full-size parameters and state if this backend has swapped them out."""

    def forget_curvature(self) -> None:
        """Remove state that describes all old live weights together: L-BFGS's history."""
        if isinstance(self.inner, LBFGS):
            self.inner.state.clear()

    def per_weight(
        self, layer: SparseLayer, shape: torch.Size, group: dict[str, Any] | None = None
    ) -> Iterator[tuple[Any, Any, Tensor, float]]:
        """Yield a layer's state tensors of ``shape``, which have one value for each weight.

        Each item is the container that holds the tensor, the key there, the tensor, and the value
        for a fresh parameter. Bool tensors are left out.
        """
        if layer.weight not in self.inner.state:
            return
        entry = self.inner.state[layer.weight]
        group = group or self._group_of(layer.weight)
        for container, key, path, value in tensors_in(entry):
            if value.shape != shape or value.dtype == torch.bool:
                continue
            if shape == layer.weight.shape and self.is_factor(layer, path):
                continue
            if group.get("differentiable"):
                # The graph of the last step may need the old value.
                with torch.enable_grad():
                    value = container[key] = value.clone()
            yield container, key, value, self.fresh(layer, group, path)

    def is_factor(self, layer: SparseLayer, path: str) -> bool:
        """Whether the state at ``path`` has the weight's shape by chance."""
        return False

    def fresh(self, layer: SparseLayer, group: dict[str, Any], path: str) -> float:
        """Return the value of the state at ``path`` before a weight's first gradient.

        For torch's optimizers the value is known. For other optimizers it is recorded when they
        make the state.
        """
        if self.knows_fresh_state:
            return fresh_value(self.inner, group, path)
        return self.noted.get((layer.name, path), 0.0)

    @contextmanager
    def record_initial_state(self) -> Iterator[Mapping[Tensor, dict[str, float]]]:
        """Record the value that new optimizer state is initialised with inside this block.

        Yields:
            A mapping that is filled on exit: the values by parameter and by name of state.
        """
        if self.knows_fresh_state:
            yield {}
            return
        with noting_first_values(self.inner) as begun:
            yield begun
        for layer in self.layers:
            for name, value in begun.get(layer.weight, {}).items():
                self.noted[layer.name, name] = value

    def recognise_fresh_values(self, layer: SparseLayer, names: Collection[str]) -> None:
        """Read initial values from the dense state of dropped weights.

        The state comes from a checkpoint, or from an optimizer that made it at construction.

        Args:
            layer: the layer.
            names: the names of the state.
        """
        if not names or self.knows_fresh_state or layer.is_sharded:
            return
        for name in names:
            values = self.inner.state[layer.weight][name]
            if type(values) in (Tensor, Parameter) and values.shape == layer.weight.shape:
                dropped = values if layer.is_full else values[~layer.mask]
                self.noted[layer.name, name] = common_value(dropped)

    def state_names(self, layer: SparseLayer) -> set[str]:
        """Return the names of the inner optimizer's state for a layer's weight."""
        return set(self.inner.state.get(layer.weight, ()))

    def trains(self, layer: SparseLayer) -> bool:
        """Whether the layer's weight is still in a param group."""
        return self._find_group(layer.weight) is not None

    def _group_of(self, weight: Tensor) -> dict[str, Any]:
        group = self._find_group(weight)
        if group is None:
            raise RuntimeError(
                "a sparse layer's weight is in none of the optimizer's param_groups."
            )
        return group

    def _find_group(self, weight: Tensor) -> dict[str, Any] | None:
        for group in self.inner.param_groups:
            if any(weight is parameter for parameter in group["params"]):
                return group
        return None
