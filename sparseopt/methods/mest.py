"""MEST: drop by weight and gradient, grow at random, within an elastic bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from sparseopt.masks.layer import SparseLayer
from sparseopt.methods.base import DropGrow, TrainingCost
from sparseopt.methods.registry import register_method
from sparseopt.methods.update import Move, Update
from sparseopt.schedules import UpdateSchedule
from sparseopt.utils.validation import check_choice, check_not_negative

__all__ = ["MEST"]


@register_method
@dataclass(frozen=True)
class MEST(DropGrow):
    r"""Memory-economic sparse training: drops by weight and gradient; new weights are on trial.

    With the soft bound, the newly grown weights are live in addition to the target, until the next
    update drops as many. Their number falls with the drop fraction. The last update is at
    ``t_end``, and leaves exactly the target. With the hard bound live counts stay the same.

    Args:
        gradient_weight: factor of the gradient's magnitude in the score, not negative. The authors'
            code has the default, 0.
        grow: ``"random"``, or ``"gradient"`` for the largest dense gradients.
        bound: ``"soft"`` (EM&S), with new weights in addition to the target until the next update,
            or ``"hard"`` (EM), with constant live counts.

    Raises:
        TypeError: if ``gradient_weight`` is not a number.
        ValueError: if an argument is out of range or not known.

    Example:
        >>> import torch
        >>> from sparseopt import MEST, SparseOptimizer
        >>> model = torch.nn.Linear(32, 16)
        >>> optimizer = SparseOptimizer(
        ...     torch.optim.SGD(model.parameters(), lr=0.1), model,
        ...     method=MEST(gradient_weight=0.5), density=0.25, total_steps=100, delta_t=10)
        >>> for _ in range(75):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(8, 32)).square().mean().backward()
        ...     optimizer.step()
        >>> first, last = optimizer.history[0], optimizer.history[-1]
        >>> (first.step, round(first.density, 2)), (last.step, last.density)
        ((10, 0.32), (75, 0.25))

    Reference: Yuan et al. 2021, "MEST: Accurate and Fast Memory-Economic Sparse Training Framework
    on the Edge", section 3.
    """

    name: ClassVar[str] = "mest"
    needs_horizon: ClassVar[bool] = True
    reaches_target_at_t_end: ClassVar[bool] = True

    gradient_weight: float = 0.0
    grow: Literal["random", "gradient"] = "random"
    bound: Literal["soft", "hard"] = "soft"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative("gradient_weight", self.gradient_weight)
        check_choice("grow", self.grow, ("random", "gradient"))
        check_choice("bound", self.bound, ("soft", "hard"))
        # A property can't override a class variable, and a frozen instance is set only like this.
        object.__setattr__(self, "needs_dense_gradient", self.grow == "gradient")
        # Otherwise a layer that is unused at the last update would stay denser than its target.
        object.__setattr__(self, "needs_gradient", self.gradient_weight > 0.0)
        object.__setattr__(self, "keeps_live_counts", self.bound == "hard")

    def is_update(self, step: int, schedule: UpdateSchedule, total_steps: int | None) -> bool:
        """Whether ``step`` is an update step of the schedule, or ``t_end`` with the soft bound."""
        return schedule.is_update(step) or (self.bound == "soft" and step == schedule.t_end)

    def fraction(self, step: int, schedule: UpdateSchedule) -> float:
        """Return the drop fraction of the schedule, and 0 from ``t_end`` on."""
        ended = schedule.t_end is not None and step >= schedule.t_end
        return 0.0 if ended else super().fraction(step, schedule)

    def moves(self, layers: Sequence[SparseLayer], update: Update) -> list[Move]:
        """Drop and grow equally many, or, with the soft bound, drop to the target and grow more."""
        if self.bound == "hard":
            moves = super().moves(layers, update)
        else:
            moves = [self._trial(layer, update) for layer in layers]
        return [
            Move(0, 0) if self._leaves_out(layer, update) else move
            for layer, move in zip(layers, moves, strict=True)
        ]

    def drop_scores(self, layer: SparseLayer, update: Update) -> Tensor:
        """Return the magnitude of weights plus ``gradient_weight`` times the gradient's."""
        magnitude = super().drop_scores(layer, update)
        if self.gradient_weight == 0.0:
            return magnitude
        assert layer.weight.grad is not None
        return magnitude + self.gradient_weight * layer.gather(layer.weight.grad).abs()

    def grow_scores(self, layer: SparseLayer, update: Update) -> Tensor:
        """Return random numbers, or the magnitude of the dense gradient."""
        if self.grow == "random":
            return update.random_scores(layer)
        assert layer.weight.grad is not None
        return layer.weight.grad.abs()

    def train_flops(self, cost: TrainingCost) -> float:
        """Return the cost at the average density so far, with dense gradients if they are used."""
        return cost.with_dense_gradients(1 if self.needs_dense_gradient else 0)

    def _trial(self, layer: SparseLayer, update: Update) -> Move:
        drop = max(0, layer.live - layer.target)
        newcomers = int(update.fraction * layer.target)
        room = layer.numel - layer.live + (0 if self.regrow == "never" else drop)
        return Move(drop, min(newcomers, room))

    def _leaves_out(self, layer: SparseLayer, update: Update) -> bool:
        """Whether a layer has no gradient at an update that grows weights."""
        if update.fraction == 0.0:
            return False
        if self.needs_dense_gradient:
            return not update.has_gradient(layer)
        return layer.weight.grad is None
