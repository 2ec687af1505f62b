"""SNFS: growth and redistribution among layers, both by momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sparseopt.masks.layer import SparseLayer
from sparseopt.methods.base import TrainingCost
from sparseopt.methods.gradient_memory import GradientMemory, Smoothed
from sparseopt.methods.redistribution import Redistributing
from sparseopt.methods.registry import register_method
from sparseopt.methods.update import Update
from sparseopt.utils.validation import check_decay

__all__ = ["SNFS"]


@register_method
@dataclass(frozen=True)
class SNFS(Redistributing):
    r"""Sparse Networks from Scratch: growth by momentum, within a layer and among layers.

    The momentum is the method's own: a dense tensor of the weight's size for each layer. Every step
    adds its dense gradient until masks stop moving. The inner optimizer's momentum is not read, and
    may be of live weights only.

    Args:
        momentum: the factor of the old value in the moving average, in [0, 1).

    Raises:
        TypeError: if ``momentum`` is not a number.
        ValueError: if it is outside [0, 1).

    Example:
        >>> from sparseopt import SNFS
        >>> SNFS(momentum=0.9).memory
        Smoothed(dense=True, beta=0.9)

    Reference: Dettmers & Zettlemoyer 2019, "Sparse Networks from Scratch: Faster Training without
    Losing Performance", algorithm 1.
    """

    name: ClassVar[str] = "snfs"
    needs_dense_gradient: ClassVar[bool] = True

    momentum: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_decay("momentum", self.momentum)

    @property
    def memory(self) -> GradientMemory:
        """The dense momentum."""
        return Smoothed(beta=self.momentum)

    def importance(self, layer: SparseLayer, update: Update) -> Tensor:
        """Return the mean magnitude of the live weights' momentum."""
        return layer.gather(update.accumulated_gradient(layer)).abs().mean()

    def grow_scores(self, layer: SparseLayer, update: Update) -> Tensor:
        """Return the magnitude of the momentum."""
        return update.accumulated_gradient(layer).abs()

    def train_flops(self, cost: TrainingCost) -> float:
        """Return the average cost of steps that all have a dense gradient."""
        return 2.0 * cost.mean_sparse + cost.dense
