"""SET: drop the smallest weights, grow at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sparseopt.masks.layer import SparseLayer
from sparseopt.methods.base import DropGrow
from sparseopt.methods.registry import register_method
from sparseopt.methods.update import Update

__all__ = ["SET"]


@register_method
@dataclass(frozen=True)
class SET(DropGrow):
    """Sparse evolutionary training: drops the smallest weights, grows at random.

    Dense gradients are never needed.

    Example:
        >>> import torch
        >>> from sparseopt import SparseOptimizer
        >>> model = torch.nn.Linear(32, 16)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer = SparseOptimizer(
        ...     sgd, model, method="set", density=0.25, total_steps=100, delta_t=10)
        >>> for _ in range(10):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(8, 32)).square().mean().backward()
        ...     optimizer.step()
        >>> record = optimizer.history[-1]
        >>> record.step, record.dropped, record.grown
        (10, 36, 36)

    Reference: Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive
    sparse connectivity inspired by network science", algorithm 1.
    """

    name: ClassVar[str] = "set"

    def grow_scores(self, layer: SparseLayer, update: Update) -> Tensor:
        """Return uniform random numbers."""
        return update.random_scores(layer)
