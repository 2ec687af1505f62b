"""RigL: drop the smallest weights, grow where the gradient is largest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sparseopt.masks.layer import SparseLayer
from sparseopt.methods.base import DropGrow, TrainingCost
from sparseopt.methods.gradient_memory import GradientMemory
from sparseopt.methods.registry import register_method
from sparseopt.methods.update import Update
from sparseopt.utils.deprecation import renamed_fields

__all__ = ["RigL"]


@register_method
@renamed_fields(grow="gradient")
@dataclass(frozen=True)
class RigL(DropGrow):
    """The rigged lottery: drops the smallest weights, grows where the gradient is largest.

    The dense gradient is needed on update steps only. It is the gradient in ``weight.grad`` when
    ``step()`` is called: accumulated, averaged over ranks and unscaled.

    Args:
        gradient: growth by accumulated gradients instead of the update step's gradient:
            ``Smoothed(0.9)``, an exponential moving average, or ``Accumulated(10)``, the sum over
            the last steps. It takes one dense tensor per layer, and gradients are dense on all
            steps that it accumulates.

    Raises:
        TypeError: if ``gradient`` is neither ``None`` nor a memory of dense gradients.

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
        >>> record.step, record.dropped, record.grown
        (10, 36, 36)

    Reference: Evci et al. 2020, "Rigging the Lottery: Making All Tickets Winners", algorithm 1.
    """

    name: ClassVar[str] = "rigl"
    needs_dense_gradient: ClassVar[bool] = True

    gradient: GradientMemory | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        given: object = self.gradient
        if given is not None and not (isinstance(given, GradientMemory) and given.dense):
            raise TypeError(
                f"gradient={given!r} must be Smoothed(...) or Accumulated(...) with dense=True, or "
                "None."
            )

    @property
    def memory(self) -> GradientMemory | None:
        """The rule in ``gradient``, or ``None``."""
        return self.gradient

    def grow_scores(self, layer: SparseLayer, update: Update) -> Tensor:
        """Return the magnitude of the dense gradient, or of the accumulated gradients."""
        if self.gradient is not None:
            return update.accumulated_gradient(layer).abs()
        assert layer.weight.grad is not None
        return layer.weight.grad.abs()

    def train_flops(self, cost: TrainingCost) -> float:
        """Return the average over an update step and ``delta_t`` ordinary steps."""
        if self.gradient is None:
            return cost.with_dense_gradients(1)
        return cost.with_dense_gradients(self.gradient.steps)
