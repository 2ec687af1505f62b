"""Static sparse training: the initial mask never moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from sparseopt.masks.layer import SparseLayer
from sparseopt.methods.base import Method
from sparseopt.methods.registry import register_method
from sparseopt.methods.update import Move, Update
from sparseopt.schedules import UpdateSchedule

__all__ = ["Static"]


@register_method
@dataclass(frozen=True)
class Static(Method):
    """Keeps the initial mask: the baseline of every dynamic method.

    Example:
        >>> import torch
        >>> from sparseopt import SparseOptimizer
        >>> model = torch.nn.Linear(32, 16)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer = SparseOptimizer(sgd, model, method="static", density=0.25)
        >>> optimizer.density, int(model.weight.count_nonzero())
        (0.25, 128)

    Reference: Evci et al. 2020, "Rigging the Lottery: Making All Tickets Winners", section 4.
    """

    name: ClassVar[str] = "static"
    moves_masks: ClassVar[bool] = False
    keeps_live_counts: ClassVar[bool] = True

    def is_update(self, step: int, schedule: UpdateSchedule, total_steps: int | None) -> bool:
        """Whether ``step`` is an update step: never."""
        return False

    def moves(self, layers: Sequence[SparseLayer], update: Update) -> list[Move]:
        """Return no drops and no growth for every layer."""
        return [Move(0, 0) for _ in layers]
