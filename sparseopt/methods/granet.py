"""GraNet: gradual pruning from a sparse start, with regeneration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sparseopt.masks.layer import SparseLayer
from sparseopt.methods.base import TrainingCost
from sparseopt.methods.gradual import Gradual, split_by_magnitude
from sparseopt.methods.registry import register_method
from sparseopt.methods.update import Move, Update
from sparseopt.utils.validation import check_density

__all__ = ["GraNet"]


@register_method
@dataclass(frozen=True)
class GraNet(Gradual):
    """Gradual pruning with zero-cost neuroregeneration.

    Training starts at the density ``initial``, distributed by ``init``, and reaches the target with
    the update at ``t_end``. The regeneration rate follows the optimizer's ``alpha`` and ``decay``;
    the paper has ``alpha=0.5`` and ``delta_t=100``.

    Args:
        initial: the density at the start, in (0, 1]; if the target is larger, training starts at
            the target.

    Raises:
        TypeError: if ``initial`` is not a number.
        ValueError: if it is outside (0, 1].

    Example:
        >>> import torch
        >>> from sparseopt import SparseOptimizer
        >>> model = torch.nn.Linear(32, 16)
        >>> optimizer = SparseOptimizer(
        ...     torch.optim.SGD(model.parameters(), lr=0.1), model,
        ...     method="granet", density=0.25, init={}, total_steps=1000, alpha=0.5)
        >>> optimizer.density, optimizer.layers[0].target / optimizer.layers[0].numel
        (0.5, 0.25)

    Reference: Liu et al. 2021, "Sparse Training via Boosting Pruning Plasticity with
    Neuroregeneration", section 4.
    """

    name: ClassVar[str] = "granet"
    needs_dense_gradient: ClassVar[bool] = True

    initial: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_density("initial", self.initial)

    def initial_density(self, density: float) -> float:
        """Return ``initial``, or the target if that is larger."""
        return max(self.initial, density)

    def moves(self, layers: Sequence[SparseLayer], update: Update) -> list[Move]:
        """Drop down to the cubic's density; then drop a fraction of the rest and grow as many."""
        pruned = split_by_magnitude(layers, self.excess(layers, update))
        return [
            self._move(layer, excess, update) for layer, excess in zip(layers, pruned, strict=True)
        ]

    def grow_scores(self, layer: SparseLayer, update: Update) -> Tensor:
        """Return the magnitude of the dense gradient."""
        assert layer.weight.grad is not None
        return layer.weight.grad.abs()

    def train_flops(self, cost: TrainingCost) -> float:
        """Return RigL's cost at the average density so far."""
        return cost.with_dense_gradients(1)

    def _move(self, layer: SparseLayer, pruned: int, update: Update) -> Move:
        if not update.has_gradient(layer):
            return Move(drop=pruned, grow=0)
        count = int(update.fraction * (layer.live - pruned))
        regenerated = min(count, layer.droppable - pruned)
        if self.regrow == "never":
            regenerated = min(regenerated, layer.numel - layer.live)
        return Move(drop=pruned + regenerated, grow=regenerated)
