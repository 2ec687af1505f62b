"""SNFS: grow, and share out what grows, by momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sparseopt._validation import check_decay
from sparseopt.layers import SparseLayer
from sparseopt.memory import GradientMemory, Smoothed
from sparseopt.methods.base import TrainingCost, Update
from sparseopt.methods.redistribution import Redistributing
from sparseopt.methods.registry import register_method

__all__ = ["SNFS"]


@register_method
@dataclass(frozen=True)
class SNFS(Redistributing):
    r"""Sparse Networks from Scratch: sparse momentum.

    Each update drops the :math:`\lfloor f(t)\, n_l \rfloor` live weights of smallest magnitude in
    each layer. As many are grown in all, and layer :math:`l` has a share of them in proportion to
    the mean magnitude of its live weights' momentum before the drop,

    .. math:: \bar m_l = \frac{1}{n_l} \sum_{i \text{ live}} |m_{l,i}|, \qquad
              m \leftarrow \beta\, m + (1 - \beta)\, g

    Within a layer, those of largest :math:`|m|` grow among the weights that did not survive. What a
    full layer can't take goes to the others.

    The momentum is the method's own, dense, and fed with the dense gradient on every step until
    masks stop; the inner optimizer's is not read, and may be compact. So gradients are dense
    between ``backward()`` and ``step()``, and ``clip_grad_norm_`` sees the norm of the dense
    gradient. It takes one tensor of the weight's size a layer. In the original the update follows
    the optimizer's step once an epoch, at a rate of .5; here it takes the step's place every
    ``delta_t`` steps, as in the reproduction report's code.

    Training costs :math:`2\,E[f_{s,t}] + f_d` FLOPs a step.

    Args:
        momentum: :math:`\beta`, in [0, 1).

    Raises:
        TypeError: if ``momentum`` is not a number.
        ValueError: if it is outside [0, 1).

    Example:
        >>> from sparseopt import SNFS
        >>> SNFS(momentum=0.9).memory
        Smoothed(dense=True, decay=0.9)

    Reference: Dettmers & Zettlemoyer 2019, "Sparse Networks from Scratch: Faster Training without
    Losing Performance", algorithm 1; the cost after Sundar & Dwaraknath 2021, supplement, section
    2.2.
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
        return Smoothed(decay=self.momentum)

    def importance(self, layer: SparseLayer, update: Update) -> Tensor:
        """Return the mean magnitude of the live weights' momentum."""
        return layer.gather(update.remembered(layer)).abs().mean()

    def grow_scores(self, layer: SparseLayer, update: Update) -> Tensor:
        """Return the magnitude of the momentum."""
        return update.remembered(layer).abs()

    def train_flops(self, cost: TrainingCost) -> float:
        """Return the cost of a step with a dense gradient, on average over the steps."""
        return 2.0 * cost.mean_sparse + cost.dense
