"""Gradual magnitude pruning: from dense to sparse along a cubic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from sparseopt.masks.layer import SparseLayer
from sparseopt.methods.base import TrainingCost
from sparseopt.methods.gradual import Gradual, split_by_magnitude
from sparseopt.methods.registry import register_method
from sparseopt.methods.update import Move, Update
from sparseopt.utils.validation import check_choice, check_density, check_fraction

__all__ = ["Pruning"]

#: Share of the training steps before the first pruning: 700 of 88,000 in the report.
START_SHARE: Final = 0.008


@register_method
@dataclass(frozen=True)
class Pruning(Gradual):
    """Gradual magnitude pruning: starts dense, drops the smallest weights along a cubic.

    At ``t_end`` the density is exactly the target; layers that ``init`` makes dense stay dense.

    Args:
        scope: ``"global"`` compares magnitudes across layers, which together have the total that
            ``init`` gives; ``"layer"`` compares them within each layer.
        start: share of the training steps before the first pruning, in [0, 1].
        initial: the density at the start, distributed by ``init``, in (0, 1].

    Raises:
        TypeError: if an argument is not a number.
        ValueError: if ``scope`` is not known, or a number is out of range.

    Example:
        >>> import torch
        >>> from sparseopt import Pruning, SparseOptimizer
        >>> model = torch.nn.Linear(32, 16)
        >>> optimizer = SparseOptimizer(
        ...     torch.optim.SGD(model.parameters(), lr=0.1), model,
        ...     method=Pruning(scope="layer"), density=0.25, init={}, total_steps=1000)
        >>> optimizer.density, optimizer.layers[0].target / optimizer.layers[0].numel
        (1.0, 0.25)

    Reference: Zhu & Gupta 2017, "To prune, or not to prune", section 3.
    """

    name: ClassVar[str] = "pruning"

    scope: Literal["global", "layer"] = "global"
    start: float = START_SHARE
    initial: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("scope", self.scope, ("global", "layer"))
        check_fraction("start", self.start)
        check_density("initial", self.initial)

    @property
    def start_share(self) -> float:
        """The share of the training steps before the first pruning."""
        return self.start

    def initial_density(self, density: float) -> float:
        """Return ``initial``, or the target if that is larger; by default every layer is full."""
        return max(self.initial, density)

    def moves(self, layers: Sequence[SparseLayer], update: Update) -> list[Move]:
        """Drop down to the cubic's density; grow nothing."""
        if self.scope == "layer":
            # Nothing grows, so the weights that were ever live were live at the start.
            started = SparseLayer.ever_live_counts(layers)
            return [
                Move(self.excess([layer], update, initial=live / layer.numel), 0)
                for layer, live in zip(layers, started, strict=True)
            ]
        return [Move(drop, 0) for drop in split_by_magnitude(layers, self.excess(layers, update))]

    def train_flops(self, cost: TrainingCost) -> float:
        """Return three times the average inference cost so far."""
        return 3.0 * cost.mean_sparse
