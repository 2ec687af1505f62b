"""What happened at each mask update."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["UpdateRecord"]


@dataclass(frozen=True)
class UpdateRecord:
    """One mask update, over all layers together.

    Attributes:
        step: the call of ``step()`` that was the update, counted from 1.
        fraction: the drop fraction in force, in [0, 1].
        dropped: live weights that were dropped.
        grown: weights that were grown; some may have been dropped in the same update.
        new: share of the weights that are live now and were not before the update, in [0, 1].
        explored: share of all weights that were ever live, in [0, 1] (the exploration rate
            :math:`R_s` of Liu et al. 2021, "Do We Actually Need Dense Over-Parameterization?").
        density: live weights over all weights after the update.
        skipped: whether nothing moved: because a gradient was not finite, or, under
            ``rigl-struct``, because the model made no training pass before the update.

    Example:
        >>> import torch
        >>> from sparseopt import SparseOptimizer
        >>> model = torch.nn.Linear(32, 16)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer = SparseOptimizer(
        ...     sgd, model, method="rigl", density=0.25, total_steps=100, delta_t=10)
        >>> for _ in range(10):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(8, 32)).square().mean().backward()
        ...     optimizer.step()
        >>> record = optimizer.history[-1]
        >>> record.step, record.dropped, record.grown, record.density, record.skipped
        (10, 36, 36, 0.25, False)
    """

    step: int
    fraction: float
    dropped: int
    grown: int
    new: float
    explored: float
    density: float
    skipped: bool = False
