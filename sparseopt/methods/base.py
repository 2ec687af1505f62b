"""The base of all methods: scores, how much moves, and state. It never touches the optimizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from sparseopt.masks.drop_and_grow import Regrow
from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.topk import largest
from sparseopt.methods.gradient_memory import GradientMemory
from sparseopt.methods.update import Move, Update
from sparseopt.schedules import UpdateSchedule
from sparseopt.utils.deprecation import warn_old_spelling
from sparseopt.utils.validation import check_choice

__all__ = ["DropGrow", "Method", "TrainingCost"]


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

    A method is a frozen dataclass, so one instance can serve several optimizers. The optimizer
    keeps the method's state from step to step, which begins as :meth:`initial_layer_state` and
    :meth:`initial_run_state` return it. Subclass :class:`DropGrow` for the usual kind of method,
    which drops a fraction and grows as many.

    Attributes:
        name: what ``method=`` takes.
        needs_dense_gradient: whether update steps need the gradient of weights that are not live.
            If so, ``weight.grad`` is left dense on update steps, and a layer in which it is zero in
            every entry sits updates out.
        needs_gradient: whether a layer without a gradient sits updates out.
        needs_horizon: whether training can't start before the number of steps is known.
        moves_masks: whether there is any update at all.
        has_own_schedule: whether the optimizer's schedule plays no part.
        reaches_target_at_t_end: whether live counts come down to their targets at ``t_end``, and at
            the first step after it at which they have not: an update in which the drop fraction
            is 0.
        observes_dense_gradient: whether :meth:`observe` needs the gradient of weights that are not
            live. If so, ``weight.grad`` is left dense on the steps that it observes.
        follows_mask: names of layer state, of the weight's shape, in which a weight that drops or
            grows begins again with its initial value, as in its optimizer state.

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
    reaches_target_at_t_end: ClassVar[bool] = False
    observes_dense_gradient: ClassVar[bool] = False
    follows_mask: ClassVar[tuple[str, ...]] = ()

    # By keyword, so that what a method itself is about comes first: NM(2, 4).
    regrow: Regrow = field(default="keep", kw_only=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "settles" in vars(cls):
            warn_old_spelling("settles in a method", "reaches_target_at_t_end")
            cls.reaches_target_at_t_end = bool(vars(cls)["settles"])
        for flag in {"prepares_forward", "dense_passes"} & vars(cls).keys():
            warn_old_spelling(f"{flag} in a method", "prepare_forward() alone")

    def __post_init__(self) -> None:
        check_choice("regrow", self.regrow, ("keep", "zero", "never"))

    @property
    def memory(self) -> GradientMemory | None:
        """How gradients are accumulated between updates; by default they are not.

        The optimizer keeps it, and :meth:`Update.remembered` returns it.
        """
        return None

    def initial_layer_state(self, layer: SparseLayer) -> Mapping[str, Tensor]:
        """Return what to keep for ``layer``, as it begins: tensors by name; by default nothing.

        Tensors of the weight's shape are sharded as the weight is. What is begun at random begins
        as on rank 0. Called when the optimizer is made, and again for weights that begin again
        (see ``follows_mask``): it returns new tensors each time.
        """
        return {}

    def initial_run_state(self) -> Mapping[str, Any]:
        """Return what to keep for the whole run, as it begins; by default nothing.

        Values by name: numbers, strings, ``None``, or tensors.
        """
        return {}

    def observe(  # noqa: B027
        self, layer: SparseLayer, gradient: Tensor, update: Update
    ) -> None:
        """Update the method's state from a weight and its gradient, before a step.

        Called once a step for every layer that has a gradient and is not dense for ever, when
        ``step()`` is called (the gradient is accumulated, averaged over ranks, unscaled and clipped
        then), and before masks move. Not called on a step whose gradients are not all finite.

        Args:
            layer: the layer of the weight. The state to update is ``update.layer_state(layer)``.
            gradient: of the weight's shape; 0 where the weight is not live, unless
                ``observes_dense_gradient`` is set.
            update: as for an update, of this step.
        """

    def is_update(self, step: int, schedule: UpdateSchedule, total_steps: int | None) -> bool:
        """Whether ``step``, counted from 1, is an update step."""
        return schedule.is_update(step)

    def observes(self, step: int, schedule: UpdateSchedule, total_steps: int | None) -> bool:
        """Whether :meth:`observe` is called on ``step``: by default until masks stop."""
        return self.has_observer and not self._is_over(step, schedule)

    @property
    def has_observer(self) -> bool:
        """Whether there is an :meth:`observe` to call."""
        return type(self).observe is not Method.observe

    def remembers(self, step: int, schedule: UpdateSchedule, total_steps: int | None) -> bool:
        """Whether the gradients of ``step`` are remembered for an update."""
        rule = self.memory
        if rule is None:
            return False
        if self._is_over(step, schedule):
            return False
        if rule.steps is None:
            return True
        coming = range(step, step + rule.steps)
        return any(self.is_update(one, schedule, total_steps) for one in coming)

    def reads_dense_gradient(
        self, step: int, schedule: UpdateSchedule, total_steps: int | None
    ) -> bool:
        """Whether ``step`` needs gradients of dropped weights: to update, remember or observe."""
        coming, rule = (step, schedule, total_steps), self.memory
        if rule is not None and rule.dense and self.remembers(*coming):
            return True
        if self.observes_dense_gradient and self.observes(*coming):
            return True
        return self.needs_dense_gradient and self.is_update(*coming)

    @property
    def always_reads_dense_gradient(self) -> bool:
        """Whether every step needs gradients of dropped weights, until masks stop."""
        rule = self.memory
        if rule is not None and rule.dense and rule.steps is None:
            return True
        chosen = type(self).observes is not Method.observes
        return self.observes_dense_gradient and self.has_observer and not chosen

    @property
    def prepares_forward(self) -> bool:
        """Whether there is a :meth:`prepare_forward` to call."""
        return type(self).prepare_forward is not Method.prepare_forward

    @property
    def dense_passes(self) -> int:
        """How many of a step's three passes cost as much as with every weight live.

        It is about a step that reads the dense gradient: the pass for the gradient of the weights
        is dense, and all are if a forward pass was prepared.
        """
        return 3 if self.prepares_forward else 1

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
        """Write values to weights that are not live, for the forward pass of an update.

        Called once an update, before the first training pass of ``model``. The values may not
        change what the model computes; they are zero again after the step.
        """
        raise TypeError(f"method {self.name!r} does not prepare a forward pass.")

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

        The default, :math:`3 f_s`, fits methods without dense gradients: one forward pass and two
        backward passes.
        """
        return 3.0 * cost.sparse

    def _is_over(self, step: int, schedule: UpdateSchedule) -> bool:
        """Whether no update can come after ``step``, by the optimizer's schedule."""
        end = schedule.t_end
        return end is not None and step > end and not self.has_own_schedule


@dataclass(frozen=True)
class DropGrow(Method):
    """Drops ``int(fraction * live)`` weights of each layer and grows as many, so counts stay.

    With ``regrow="never"`` it drops no more than can be grown, and under weight norm no more than
    leaves a live weight in every slice.

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
        count = min(int(fraction * layer.live), layer.droppable)
        if self.regrow == "never":
            count = min(count, layer.numel - layer.live)
        return Move(drop=count, grow=count)
