"""A method composed of scores and a schedule, without a class of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Final, Protocol

import torch
from torch import Tensor

from sparseopt.masks.layer import SparseLayer
from sparseopt.methods.base import DropGrow, TrainingCost
from sparseopt.methods.gradient_memory import GradientMemory
from sparseopt.methods.update import Update
from sparseopt.schedules import UpdateSchedule
from sparseopt.utils.deprecation import renamed_fields
from sparseopt.utils.validation import check_choice

__all__ = ["Compose", "Schedule", "Score"]

#: A number for each weight of a layer, of the weight's shape.
Score = Callable[[SparseLayer, Update], Tensor]


class Schedule(Protocol):
    """When masks move and how much; :class:`sparseopt.UpdateSchedule` is one.

    Example:
        >>> class EveryTenth:
        ...     def is_update(self, step):
        ...         return step % 10 == 0
        ...     def fraction(self, step):
        ...         return 0.3
        >>> from sparseopt import Compose
        >>> Compose(schedule=EveryTenth()).schedule.is_update(20)
        True
    """

    def is_update(self, step: int) -> bool:
        """Whether the ``step``-th call of ``step()``, counted from 1, is an update step."""

    def fraction(self, step: int) -> float:
        """Return the share of live weights to drop at ``step``, in [0, 1]."""


def _gradient(layer: SparseLayer, update: Update) -> Tensor:
    assert layer.weight.grad is not None
    return layer.weight.grad.abs()


def _salience(layer: SparseLayer, update: Update) -> Tensor:
    return layer.weight.detach().abs() * _gradient(layer, update)


SCORES: Final[dict[str, Score]] = {
    "magnitude": lambda layer, update: layer.weight.detach().abs(),
    "gradient": _gradient,
    "salience": _salience,
    "momentum": lambda layer, update: update.accumulated_gradient(layer).abs(),
    "random": lambda layer, update: update.random_scores(layer),
}
#: Scores that can rank weights that are not live. The other scores are 0 for all such weights.
GROWS: Final = ("gradient", "momentum", "random")
#: Of these, the scores that need no dense gradient on the update step.
WITHOUT_DENSE_GRADIENT: Final = ("momentum", "random")


@renamed_fields(remember="gradient")
@dataclass(frozen=True)
class Compose(DropGrow):
    r"""Drops the lowest scores of each layer, and grows the same number of the highest scores.

    Scores are ``"magnitude"`` :math:`|w|`, ``"gradient"`` :math:`|g|`, ``"salience"``
    :math:`|w g|`, ``"momentum"`` (the magnitude of the gradients that ``gradient`` accumulates),
    ``"random"``, or any function of a :class:`SparseLayer` and an :class:`Update` that returns a
    number for each weight, of the weight's shape. Everything else is as in RigL.

    Growth is by ``"gradient"``, ``"momentum"``, ``"random"`` or a function. Weights that are not
    live are 0, so by magnitude or salience only weights that were just dropped would grow.

    A training step costs what RigL's does, or :math:`3 f_s` if no dense gradient is needed.

    Args:
        drop: the score by which live weights are dropped, the lowest first.
        grow: the score by which other weights are grown, the highest first. A function finds dense
            gradients in ``layer.weight.grad``.
        schedule: when masks move, and how much, in place of the optimizer's ``delta_t``, ``alpha``,
            ``t_end`` and ``decay``: an :class:`UpdateSchedule`, or any object with the same
            functions ``is_update(step)`` and ``fraction(step)``.
        gradient: how to accumulate the gradients that :meth:`Update.accumulated_gradient` returns.
        label: the method's name in checkpoints.

    Raises:
        TypeError: if a score is neither a name nor a function, or is ``"momentum"`` without
            ``gradient``.
        ValueError: if a score's name is not known, or if the score to grow by can't rank weights
            that are not live: ``"magnitude"``, ``"salience"``, or ``"momentum"`` where ``gradient``
            has ``dense=False``.

    Example:
        >>> from sparseopt import UpdateSchedule
        >>> method = Compose(
        ...     drop=lambda layer, update: layer.weight.abs() + 0.1 * layer.weight.grad.abs(),
        ...     grow="gradient",
        ...     schedule=UpdateSchedule(delta_t=50, alpha=0.5, t_end=1000, decay="linear"))
        >>> method.needs_dense_gradient
        True
    """

    name: ClassVar[str] = "composed"

    drop: Score | str = "magnitude"
    grow: Score | str = "gradient"
    schedule: Schedule | None = None
    gradient: GradientMemory | None = None
    label: str = "composed"

    def __post_init__(self) -> None:
        super().__post_init__()
        for argument, score in (("drop", self.drop), ("grow", self.grow)):
            if isinstance(score, str):
                check_choice(argument, score, SCORES)
            elif not callable(score):
                raise TypeError(f"{argument}={score!r} must be a name or a function.")
            if score == "momentum" and self.gradient is None:
                raise TypeError(f"{argument}='momentum' needs gradient=, such as Smoothed(0.9).")
        self._check_growth()
        # A property can't override a class variable, and a frozen instance is set only like this.
        object.__setattr__(self, "name", self.label)
        object.__setattr__(self, "has_own_schedule", self.schedule is not None)
        dense = self.grow not in WITHOUT_DENSE_GRADIENT
        object.__setattr__(self, "needs_dense_gradient", dense)

    def _check_growth(self) -> None:
        if isinstance(self.grow, str) and self.grow not in GROWS:
            raise ValueError(
                f"grow={self.grow!r} is 0 for every weight that is not live, so masks would not "
                f"move: it must be one of {', '.join(GROWS)}, or a function."
            )
        if self.grow == "momentum" and self.gradient is not None and not self.gradient.dense:
            raise ValueError(
                f"grow='momentum' with gradient={self.gradient!r} is 0 for every weight that was "
                "not live, so masks would not move: its memory must have dense=True."
            )

    @property
    def memory(self) -> GradientMemory | None:
        """The rule in ``gradient``."""
        return self.gradient

    def is_update(self, step: int, schedule: UpdateSchedule, total_steps: int | None) -> bool:
        """Whether ``step`` is an update step of this method's schedule, or of the optimizer's."""
        return (self.schedule or schedule).is_update(step)

    def fraction(self, step: int, schedule: UpdateSchedule) -> float:
        """Return the drop fraction of this method's schedule, or of the optimizer's."""
        return (self.schedule or schedule).fraction(step)

    def drop_scores(self, layer: SparseLayer, update: Update) -> Tensor:
        """Return the score of live weights."""
        return layer.gather(self._scores("drop", self.drop, layer, update))

    def grow_scores(self, layer: SparseLayer, update: Update) -> Tensor:
        """Return the score of all weights."""
        return self._scores("grow", self.grow, layer, update)

    def train_flops(self, cost: TrainingCost) -> float:
        """Return RigL's cost, or the cost of steps without dense gradients."""
        if isinstance(self.schedule, UpdateSchedule):
            cost = replace(cost, delta_t=self.schedule.delta_t)
        steps: int | None = int(self.needs_dense_gradient)
        if self.gradient is not None and self.gradient.dense:
            steps = self.gradient.steps
        return cost.with_dense_gradients(steps)

    @staticmethod
    def _scores(argument: str, score: Score | str, layer: SparseLayer, update: Update) -> Tensor:
        function = SCORES[score] if isinstance(score, str) else score
        with torch.no_grad():
            scores = function(layer, update)
        if scores.shape != layer.weight.shape:
            raise ValueError(
                f"{argument}= returned scores of shape {tuple(scores.shape)} for {layer.name!r}, "
                f"but must return one score for each weight: {tuple(layer.weight.shape)}."
            )
        return scores
