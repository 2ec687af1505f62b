"""RigL: drop the smallest weights, grow where the gradient is largest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sparseopt.layers import SparseLayer
from sparseopt.methods.base import DropGrow, TrainingCost, Update
from sparseopt.methods.registry import register_method

__all__ = ["RigL"]


@register_method
@dataclass(frozen=True)
class RigL(DropGrow):
    r"""The rigged lottery.

    Each update drops the :math:`\lfloor f(t)\, n \rfloor` live weights of smallest magnitude in
    each layer of :math:`n` live weights, and grows as many where :math:`|\partial L / \partial w|`
    is largest among the weights that did not survive. The update takes the gradient step's place.
    The dense gradient is needed on update steps only; it is the one that ``backward()`` left in
    ``weight.grad``: accumulated, averaged over ranks and unscaled.

    A training step costs, on average,

    .. math:: \frac{3\,\Delta T\, f_s + 2 f_s + f_d}{\Delta T + 1}

    Reference: Evci et al. 2020, "Rigging the Lottery: Making All Tickets Winners", algorithm 1;
    the cost after Sundar & Dwaraknath 2021, supplement, section 2.2.
    """

    name: ClassVar[str] = "rigl"
    needs_dense_gradient: ClassVar[bool] = True

    def grow_scores(self, layer: SparseLayer, update: Update) -> Tensor:
        """Return the magnitude of the dense gradient."""
        assert layer.weight.grad is not None
        return layer.weight.grad.abs()

    def train_flops(self, cost: TrainingCost) -> float:
        """Return the average over an update step and the ``delta_t`` ordinary ones."""
        ordinary = 3.0 * cost.sparse
        update = 2.0 * cost.sparse + cost.dense
        return (cost.delta_t * ordinary + update) / (cost.delta_t + 1)
