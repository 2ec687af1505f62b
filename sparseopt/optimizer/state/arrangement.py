"""Which parameters the inner optimizer steps in pools, which one by one, and which as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from sparseopt.masks.layer import SparseLayer
from sparseopt.optimizer.state.pools import Pool, make_pools

__all__ = ["Arrangement"]


class Arrangement:
    """How the parameters of one step are stepped, and of the next ones while :meth:`holds`.

    Args:
        inner: the optimizer.
        layers: its sparse layers.
        pooled: whether many layers may be one 1-D parameter.

    Attributes:
        pools: layers whose live weights are stepped together.
        lent: layers whose parameters hold live weights only during a step.
        others: parameters that are in no pool, by the id of their param group.
    """

    def __init__(self, inner: Optimizer, layers: Sequence[SparseLayer], *, pooled: bool) -> None:
        self._basis = _basis(inner, layers)
        lending = {layer.weight: layer for layer in _lending(layers)}
        self.pools = list(_pools(inner, lending)) if pooled else []
        in_pools = {layer.weight for pool in self.pools for layer in pool.layers}
        self.lent = [layer for weight, layer in lending.items() if weight not in in_pools]
        self.others = {
            id(group): [weight for weight in group["params"] if weight not in in_pools]
            for group in inner.param_groups
        }

    def holds(self, inner: Optimizer, layers: Sequence[SparseLayer]) -> bool:
        """Whether the same layers have gradients and nobody replaced their state."""
        return self._basis == _basis(inner, layers) and all(pool.fits() for pool in self.pools)


def _pools(inner: Optimizer, lending: Mapping[Any, SparseLayer]) -> Iterator[Pool]:
    for group in inner.param_groups:
        members = [lending[weight] for weight in group["params"] if weight in lending]
        yield from make_pools(inner, group, members)


def _lending(layers: Sequence[SparseLayer]) -> list[SparseLayer]:
    """Return the layers whose live weights are stepped in place of the dense ones."""
    return [layer for layer in layers if layer.weight.grad is not None and not layer.is_full]


def _basis(inner: Optimizer, layers: Sequence[SparseLayer]) -> tuple[Any, ...]:
    """Return what an arrangement follows from, to compare."""
    groups = inner.param_groups
    # Tensors would be compared by their entries. An arrangement keeps them, so ids don't recur.
    members = [(id(group), [id(weight) for weight in group["params"]]) for group in groups]
    return _lending(layers), members
