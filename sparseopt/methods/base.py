"""What a method is: scores, and how much moves. It never touches the optimizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.topk import largest
from sparseopt.masks.transition import Regrow
from sparseopt.methods.gradient_memory import GradientMemory, RememberedGradients
from sparseopt.schedules import UpdateSchedule
from sparseopt.utils.random import uniform
from sparseopt.utils.validation import check_choice

__all__ = ["DropGrow", "Method", "Move", "Rewiring", "TrainingCost", "Update"]


@dataclass(frozen=True)
class Update:
    """What a method is told about the update that it scores.

    Attributes:
        step: the call of ``step()`` that is the update, counted from 1.
        fraction: the drop fraction now, in [0, 1].
        schedule: the optimizer's schedule.
        total_steps: the horizon, if it is known.
        generator: the optimizer's random source, on the CPU and the same on every rank.
        memory: what the optimizer remembers for :attr:`Method.memory`, this step included.
        layers: all layers in the model's order, those that sit the update out included.

    Example:
        >>> import torch
        >>> from sparseopt import Compose, SparseOptimizer
        >>> def at_random_then_by_gradient(layer, update):
        ...     if update.fraction > 0.15:
        ...         return update.random_scores(layer)
        ...     return layer.weight.grad.abs()
        >>> model = torch.nn.Linear(32, 16)
        >>> optimizer = SparseOptimizer(
        ...     torch.optim.SGD(model.parameters(), lr=0.1), model,
        ...     method=Compose(grow=at_random_then_by_gradient), density=0.25, total_steps=1000)
    """

    step: int
    fraction: float
    schedule: UpdateSchedule
    total_steps: int | None
    generator: torch.Generator
    memory: RememberedGradients | None = None
    layers: Sequence[SparseLayer] = ()

    def remembered(self, layer: SparseLayer) -> Tensor:
        """Return what :attr:`Method.memory` made of the gradients of ``layer`` so far.

        Of the weight's shape, in at least single precision, and dense; 0 where nothing was fed.
        """
        if self.memory is None:
            raise TypeError("the method remembers nothing: its memory is None.")
        return self.memory.of(layer)

    def random_scores(self, layer: SparseLayer) -> Tensor:
        """Draw one uniform number for each weight of ``layer``: the weight's shape and device.

        Numbers are drawn on the CPU in logical order, so they are the same on every device, in
        every memory format and on every rank.
        """
        scores = uniform(layer.weight.shape, self.generator)
        return scores.to(layer.weight.device)


@dataclass(frozen=True)
class Move:
    """How many weights of a layer to drop and to grow in one update.

    Attributes:
        drop: live weights to drop, those of lowest score.
        grow: weights to grow, of those that did not survive, by highest score.

    Example:
        >>> from sparseopt import Move
        >>> Move(drop=3, grow=3)
        Move(drop=3, grow=3)
    """

    drop: int
    grow: int


@dataclass(frozen=True)
class Rewiring(Move):
    """Which weights of a layer to drop and to grow: for methods whose masks have a structure.

    Attributes:
        survivors: which live weights don't drop, bool, ``(numel,)`` in logical order.
        mask: which weights are live afterwards, the survivors among them, bool, ``(numel,)``.
        values: what a weight that is new starts with, of the weight's shape; 0 by default.

    Example:
        >>> import torch
        >>> from sparseopt import Rewiring
        >>> before = torch.tensor([True, True, False])
        >>> after = torch.tensor([True, False, True])
        >>> rewiring = Rewiring(drop=1, grow=1, survivors=before & after, mask=after)
        >>> rewiring.survivors.tolist()
        [True, False, False]
    """

    survivors: Tensor
    mask: Tensor
    values: Tensor | None = None


@dataclass(frozen=True)
class TrainingCost:
    """What a method's training formula is made from, in FLOPs per sample.

    Attributes:
        dense: inference with every weight live, :math:`f_d`.
        sparse: inference with the masks as they are, :math:`f_s`.
        mean_sparse: the average over the steps so far, :math:`E[f_{s,t}]`.
        delta_t: steps between updates.

    Example:
        >>> from sparseopt import RigL, TrainingCost
        >>> cost = TrainingCost(dense=1000.0, sparse=100.0, mean_sparse=100.0, delta_t=99)
        >>> RigL().train_flops(cost) == cost.with_dense_gradients(steps=1)
        True
        >>> cost.with_dense_gradients(steps=1)
        309.0
    """

    dense: float
    sparse: float
    mean_sparse: float
    delta_t: int

    def with_dense_gradients(self, steps: int | None) -> float:
        """Return the cost of a step where some of them compute gradients of all weights.

        Args:
            steps: how many of an update step and the ``delta_t`` ordinary ones; ``None`` for all.
        """
        period = self.delta_t + 1
        dense_steps = period if steps is None else min(steps, period)
        ordinary = 3.0 * self.mean_sparse
        dense = 2.0 * self.mean_sparse + self.dense
        return ((period - dense_steps) * ordinary + dense_steps * dense) / period


@dataclass(frozen=True)
class Method(ABC):
    """Decides when masks move, how much moves in each layer, and which weights.

    A method is a frozen dataclass without state, so one instance can serve several optimizers.
    Subclass :class:`DropGrow` for the usual kind, which drops a fraction and grows as many.

    Attributes:
        name: what ``method=`` takes.
        needs_dense_gradient: whether update steps need the gradient of weights that are not live.
            If so, ``weight.grad`` is left dense on update steps, and a layer in which it is zero in
            every entry sits updates out.
        needs_gradient: whether a layer without a gradient sits updates out.
        needs_horizon: whether training can't start before the number of steps is known.
        moves_masks: whether there is any update at all.
        has_own_schedule: whether the optimizer's schedule plays no part.
        settles: whether live counts come down to their targets at ``t_end``, and at the first step
            after it at which they have not: an update in which the drop fraction is 0.
        prepares_forward: whether :meth:`prepare_forward` is to be called.
        dense_passes: how many of the three passes of a step that reads the dense gradient cost as
            much as with every weight live.

    Args:
        regrow: what becomes of a weight that an update drops and could grow again: ``"keep"`` lets
            it come back with its value and optimizer state, ``"zero"`` lets it come back afresh,
            ``"never"`` rules it out in that update. ``regrow=`` of :class:`SparseOptimizer` sets it
            where ``method=`` is a name.

    Raises:
        ValueError: if ``regrow`` is not known.

    Example:
        >>> from dataclasses import dataclass
        >>> import torch
        >>> from sparseopt import Method, Move, SparseOptimizer
        >>> @dataclass(frozen=True)
        ... class OneAtATime(Method):
        ...     name = "one-at-a-time"
        ...     def moves(self, layers, update):
        ...         return [Move(drop=1, grow=1) for layer in layers]
        ...     def grow_scores(self, layer, update):
        ...         return update.random_scores(layer)
        >>> model = torch.nn.Linear(32, 16)
        >>> optimizer = SparseOptimizer(
        ...     torch.optim.SGD(model.parameters(), lr=0.1), model,
        ...     method=OneAtATime(), density=0.25, total_steps=100, delta_t=1)
        >>> model(torch.randn(8, 32)).square().mean().backward()
        >>> optimizer.step()
        >>> optimizer.history[-1].dropped, optimizer.history[-1].grown
        (1, 1)
    """

    name: ClassVar[str]
    needs_dense_gradient: ClassVar[bool] = False
    needs_gradient: ClassVar[bool] = True
    needs_horizon: ClassVar[bool] = False
    moves_masks: ClassVar[bool] = True
    has_own_schedule: ClassVar[bool] = False
    settles: ClassVar[bool] = False
    prepares_forward: ClassVar[bool] = False
    dense_passes: ClassVar[int] = 1

    # By keyword, so that what a method itself is about comes first: NM(2, 4).
    regrow: Regrow = field(default="keep", kw_only=True)

    def __post_init__(self) -> None:
        check_choice("regrow", self.regrow, ("keep", "zero", "never"))

    @property
    def memory(self) -> GradientMemory | None:
        """What to remember of gradients between updates; by default nothing.

        The optimizer keeps it, and :meth:`Update.remembered` returns it.
        """
        return None

    def is_update(self, step: int, schedule: UpdateSchedule, total_steps: int | None) -> bool:
        """Whether ``step``, counted from 1, is an update step."""
        return schedule.is_update(step)

    def remembers(self, step: int, schedule: UpdateSchedule, total_steps: int | None) -> bool:
        """Whether the gradients of ``step`` are remembered for an update."""
        rule = self.memory
        if rule is None:
            return False
        if schedule.t_end is not None and step > schedule.t_end and not self.has_own_schedule:
            return False
        if rule.steps is None:
            return True
        coming = range(step, step + rule.steps)
        return any(self.is_update(one, schedule, total_steps) for one in coming)

    def reads_dense_gradient(
        self, step: int, schedule: UpdateSchedule, total_steps: int | None
    ) -> bool:
        """Whether ``step`` needs gradients of dropped weights: to update, or to remember."""
        rule = self.memory
        if rule is not None and rule.dense and self.remembers(step, schedule, total_steps):
            return True
        return self.needs_dense_gradient and self.is_update(step, schedule, total_steps)

    def fraction(self, step: int, schedule: UpdateSchedule) -> float:
        """Return the drop fraction at ``step``, in [0, 1]."""
        return schedule.fraction(step)

    def initial_density(self, density: float) -> float:
        """Return the density that training starts from, at least its target ``density``."""
        return density

    def live_count(self, shape: tuple[int, ...], target: int) -> int:
        """Return the final live count of a layer: ``target``, or what the method can have."""
        return target

    def initial_mask(self, scores: Tensor, live: int) -> Tensor:
        """Return the mask of the ``live`` highest scores, bool, of their shape.

        A method whose masks have a structure returns the best mask that has it, and so refuses
        masks that don't: those which, as scores, don't come back the same.
        """
        return largest(scores.reshape(-1), live).view(scores.shape)

    def prepare_forward(self, model: nn.Module, update: Update) -> None:
        """Write to weights that are not live what the update's forward pass is to find there.

        Called once an update, before the first training pass of ``model``. Nothing that is written
        may change what the model computes; after the step it is gone.
        """
        raise TypeError(f"method {self.name!r} has nothing to prepare.")

    @abstractmethod
    def moves(self, layers: Sequence[SparseLayer], update: Update) -> list[Move]:
        """Return how much to drop and grow in each of ``layers``, in their order.

        What a :class:`Rewiring` says is done as it is, without scores.
        """

    def drop_scores(self, layer: SparseLayer, update: Update) -> Tensor:
        """Return a score for each live weight, ``(live,)``; the lowest are dropped.

        The default is the magnitude. Use :meth:`SparseLayer.gather` to bring any tensor of the
        weight's shape into this form.
        """
        return layer.gather(layer.weight).abs()

    def grow_scores(self, layer: SparseLayer, update: Update) -> Tensor:
        """Return a score for each weight, of the weight's shape; the highest candidates grow.

        Scores of survivors don't matter. A weight that this update drops is a candidate, unless
        ``regrow="never"``.
        """
        raise TypeError(f"method {self.name!r} does not grow weights, but moves() asked it to.")

    def train_flops(self, cost: TrainingCost) -> float:
        """Return the FLOPs of a training step per sample, by the method's formula.

        The default, :math:`3 f_s`, is that of methods without dense gradients: one pass forward
        and two backward.
        """
        return 3.0 * cost.sparse


@dataclass(frozen=True)
class DropGrow(Method):
    """Drops ``int(fraction * live)`` weights of each layer and grows as many, so counts stay.

    With ``regrow="never"`` it drops no more than can be grown.

    Example:
        >>> from dataclasses import dataclass
        >>> from sparseopt import DropGrow
        >>> @dataclass(frozen=True)
        ... class Salience(DropGrow):
        ...     name = "salience"
        ...     needs_dense_gradient = True
        ...     strength: float = 1.0
        ...     def drop_scores(self, layer, update):
        ...         gradient = layer.gather(layer.weight.grad)
        ...         return layer.gather(layer.weight).abs() + self.strength * gradient.abs()
        ...     def grow_scores(self, layer, update):
        ...         return layer.weight.grad.abs()
        >>> Salience(strength=0.5)
        Salience(regrow='keep', strength=0.5)
    """

    def moves(self, layers: Sequence[SparseLayer], update: Update) -> list[Move]:
        """Return the same number twice for each layer."""
        return [self._move(layer, update.fraction) for layer in layers]

    @abstractmethod
    def grow_scores(self, layer: SparseLayer, update: Update) -> Tensor:
        """Return a score for each weight, of the weight's shape; the highest candidates grow."""

    def _move(self, layer: SparseLayer, fraction: float) -> Move:
        count = int(fraction * layer.live)
        if self.regrow == "never":
            count = min(count, layer.numel - layer.live)
        return Move(drop=count, grow=count)
