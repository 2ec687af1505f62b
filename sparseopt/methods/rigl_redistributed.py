"""RigL-SG and RigL-SM: RigL with redistribution of growth among layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sparseopt.masks.layer import SparseLayer
from sparseopt.methods.gradient_memory import GradientMemory, Smoothed
from sparseopt.methods.redistribution import Redistributing
from sparseopt.methods.registry import register_method
from sparseopt.methods.rigl import RigL
from sparseopt.methods.update import Update
from sparseopt.utils.deprecation import renamed_fields

__all__ = ["RigLSG", "RigLSM"]


@register_method
@renamed_fields(grow="gradient")
@dataclass(frozen=True)
class RigLSG(Redistributing, RigL):
    """RigL with redistribution by gradient.

    It is :class:`RigL`, but each layer grows a part of the total number of dropped weights, in
    proportion to the mean gradient magnitude of its live weights.

    Args:
        gradient: as in :class:`RigL`.

    Raises:
        TypeError: if ``gradient`` is neither ``None`` nor a memory of dense gradients.

    Example:
        >>> import torch
        >>> from sparseopt import SparseOptimizer
        >>> model = torch.nn.Sequential(torch.nn.Linear(32, 16), torch.nn.Linear(16, 8))
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer = SparseOptimizer(
        ...     sgd, model, method="rigl-sg", density=0.25, total_steps=100, delta_t=10)
        >>> before = [layer.live for layer in optimizer.layers]
        >>> for _ in range(10):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(8, 32)).square().mean().backward()
        ...     optimizer.step()
        >>> after = [layer.live for layer in optimizer.layers]
        >>> sum(after) == sum(before), after == before
        (True, False)

    Reference: Sundar & Dwaraknath 2021, "[Re] Rigging the Lottery: Making All Tickets Winners",
    section on redistribution.
    """

    name: ClassVar[str] = "rigl-sg"

    def importance(self, layer: SparseLayer, update: Update) -> Tensor:
        """Return the mean magnitude of the live weights' gradient."""
        assert layer.weight.grad is not None
        return layer.gather(layer.weight.grad).float().abs().mean()


@register_method
@renamed_fields(grow="gradient")
@dataclass(frozen=True)
class RigLSM(Redistributing, RigL):
    """RigL with redistribution by momentum.

    It is :class:`RigLSG`, but in proportion to the mean magnitude of the live weights' momentum.
    The momentum is the method's own, with a beta of .9. With ``gradient=``, growth and
    redistribution both use the gradients that it accumulates.

    Args:
        gradient: as in :class:`RigL`.

    Raises:
        TypeError: if ``gradient`` is neither ``None`` nor a memory of dense gradients.

    Example:
        >>> from sparseopt import RigLSM
        >>> RigLSM().memory
        Smoothed(dense=False, beta=0.9)

    Reference: Sundar & Dwaraknath 2021, "[Re] Rigging the Lottery: Making All Tickets Winners",
    section on redistribution.
    """

    name: ClassVar[str] = "rigl-sm"

    @property
    def memory(self) -> GradientMemory:
        """The momentum of live weights, or the rule in ``gradient``."""
        return Smoothed(dense=False) if self.gradient is None else self.gradient

    def importance(self, layer: SparseLayer, update: Update) -> Tensor:
        """Return the mean magnitude of the live weights' momentum."""
        return layer.gather(update.accumulated_gradient(layer)).abs().mean()
