"""The base of all methods: scores, move counts and state. A method never touches the optimizer."""

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
from sparseopt.utils.deprecation import OldName, warn_old_spelling
from sparseopt.utils.validation import check_choice

__all__ = ["DropGrow", "Method", "TrainingCost"]


class _Remembers(OldName):
    """The old name of the ``accumulates`` of one class, so that ``super()`` does not start over."""

    def __init__(self, accumulates: Any) -> None:
        def read(method: Method) -> Any:
            warn_old_spelling(".remembers", ".accumulates")
            return accumulates.__get__(method, type(method))

        super().__init__(read, doc="")

    def __call__(self, method: Method, *args: Any) -> Any:
        """Call it as a function of the class."""
        return self.__get__(method)(*args)


@dataclass(frozen=True)
class TrainingCost:
    """The figures that a method's training formula combines, in FLOPs per sample.

    Attributes:
        dense: inference with every weight live, :math:`f_d`.
        sparse: inference with the present masks, :math:`f_s`.
        mean_sparse: the average of ``sparse`` over the steps so far, :math:`E[f_{s,t}]`.
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
        """Return the average cost of a step if some steps compute the gradients of all weights.

        Args:
            steps: how many steps do so in each period of ``delta_t`` ordinary steps and one update
                step; ``None`` for all.
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
    keeps the method's state from step to step; :meth:`initial_layer_state` and
    :meth:`initial_run_state` return its initial values. Subclass :class:`DropGrow` for the usual
    kind of method, which drops a fraction of each layer and grows the same number.

    Attributes:
        name: the name that ``method=`` takes.
        needs_dense_gradient: whether update steps need the gradient of weights that are not live.
            If so, ``weight.grad`` is left dense on update steps, and an update leaves out a layer
            whose gradient is zero in every entry.
        needs_gradient: whether updates leave out layers without a gradient.
        needs_horizon: whether training can't start before the number of steps is known.
        moves_masks: whether the method has any updates.
        has_own_schedule: whether the method ignores the optimizer's schedule.
        keeps_live_counts: whether every update drops as many weights of a layer as it grows.
            Otherwise the ``train_expected`` of ``flops()`` is not known before the last update,
            unless the method plans its density.
        reaches_target_at_t_end: whether live counts come down to their targets at ``t_end``. If
            they are still above their targets after ``t_end``, the next possible step is an update
            with a drop fraction of 0.
        observes_dense_gradient: whether :meth:`observe` needs the gradient of weights that are not
            live. If so, ``weight.grad`` is left dense on the steps that it observes.
        follows_mask: names of layer state of the weight's shape in which a weight that drops or
            grows gets its initial value again, as in its optimizer state.

    Args:
        regrow: what happens if a weight that an update drops would grow again in that update:
            ``"keep"`` lets it grow with its value and optimizer state, ``"zero"`` lets it grow from
            zero with new state, ``"never"`` does not let it grow. ``regrow=`` of
            :class:`SparseOptimizer` sets it where ``method=`` is a name.

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
    keeps_live_counts: ClassVar[bool] = False
    reaches_target_at_t_end: ClassVar[bool] = False
    observes_dense_gradient: ClassVar[bool] = False
    follows_mask: ClassVar[tuple[str, ...]] = ()

    # Keyword-only, so that a method's own fields come first: NM(2, 4).
    regrow: Regrow = field(default="keep", kw_only=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "settles" in vars(cls):
            warn_old_spelling("settles in a method", "reaches_target_at_t_end")
            cls.reaches_target_at_t_end = bool(vars(cls)["settles"])
        # With both names in each class, super() finds the next class by either name.
        for one in cls.__mro__[: cls.__mro__.index(Method)]:
            functions = vars(one)
            if isinstance(functions.get("remembers"), OldName):
                continue
            if "remembers" in functions:
                warn_old_spelling("remembers() in a method", "accumulates()")
                if "accumulates" not in functions:
                    setattr(one, "accumulates", functions["remembers"])  # noqa: B010
            if "accumulates" in functions:
                setattr(one, "remembers", _Remembers(functions["accumulates"]))  # noqa: B010
        for flag in {"prepares_forward", "dense_passes"} & vars(cls).keys():
            warn_old_spelling(f"{flag} in a method", "prepare_forward() alone")

    def __post_init__(self) -> None:
        check_choice("regrow", self.regrow, ("keep", "zero", "never"))

    @property
    def memory(self) -> GradientMemory | None:
        """How gradients are accumulated between updates; by default they are not.

        The optimizer keeps it, and :meth:`Update.accumulated_gradient` returns it.
        """
        return None

    def initial_layer_state(self, layer: SparseLayer) -> Mapping[str, Tensor]:
        """Return the initial state of ``layer``: tensors by name; by default none.

        Tensors of the weight's shape are sharded as the weight is. All ranks get rank 0's values,
        even if they are random. This is called when the optimizer is made, and again for weights
        that get their initial value again (see ``follows_mask``): return new tensors each time.
        """
        return {}

    def initial_run_state(self) -> Mapping[str, Any]:
        """Return the initial state of the run: values by name; by default none.

        A value is a number, a string, ``None`` or a tensor.
        """
        return {}

    def observe(  # noqa: B027
        self, layer: SparseLayer, gradient: Tensor, update: Update
    ) -> None:
        """Update the method's state from a weight and its gradient, before a step.

        It is called in ``step()``, before masks move, once for every layer that has a gradient and
        is not ``is_dense``. At that time the gradient is accumulated, averaged over ranks, unscaled
        and clipped. It is not called on a step whose gradients are not all finite.

        Args:
            layer: the layer. The state to update is ``update.layer_state(layer)``.
            gradient: the gradient, of the weight's shape; 0 where the weight is not live, unless
                ``observes_dense_gradient`` is set.
            update: this step, described as for an update.
        """

    def is_update(self, step: int, schedule: UpdateSchedule, total_steps: int | None) -> bool:
        """Whether ``step``, counted from 1, is an update step."""
        return schedule.is_update(step)

    def observes(self, step: int, schedule: UpdateSchedule, total_steps: int | None) -> bool:
        """Whether :meth:`observe` is called on ``step``: by default until masks stop moving."""
        return self.has_observer and not self._is_over(step, schedule)

    @property
    def has_observer(self) -> bool:
        """Whether the method overrides :meth:`observe`."""
        return type(self).observe is not Method.observe

    def accumulates(self, step: int, schedule: UpdateSchedule, total_steps: int | None) -> bool:
        """Whether the gradients of ``step`` are accumulated for an update."""
        rule = self.memory
        if rule is None:
            return False
        if self._is_over(step, schedule):
            return False
        if rule.steps is None:
            return True
        coming = range(step, step + rule.steps)
        return any(self.is_update(number, schedule, total_steps) for number in coming)

    remembers = _Remembers(accumulates)

    def reads_dense_gradient(
        self, step: int, schedule: UpdateSchedule, total_steps: int | None
    ) -> bool:
        """Whether ``step`` needs gradients of dropped weights: to update, accumulate or observe."""
        coming, rule = (step, schedule, total_steps), self.memory
        if rule is not None and rule.dense and self.accumulates(*coming):
            return True
        if self.observes_dense_gradient and self.observes(*coming):
            return True
        return self.needs_dense_gradient and self.is_update(*coming)

    @property
    def always_reads_dense_gradient(self) -> bool:
        """Whether every step needs gradients of dropped weights, until masks stop moving."""
        rule = self.memory
        if rule is not None and rule.dense and rule.steps is None:
            return True
        chosen = type(self).observes is not Method.observes
        return self.observes_dense_gradient and self.has_observer and not chosen

    @property
    def prepares_forward(self) -> bool:
        """Whether the method overrides :meth:`prepare_forward`."""
        return type(self).prepare_forward is not Method.prepare_forward

    @property
    def dense_passes(self) -> int:
        """How many of the three passes of a step with dense gradients cost as much as dense ones.

        The pass that computes the gradient of the weights does. If the forward pass was prepared,
        all three do.
        """
        return 3 if self.prepares_forward else 1

    def fraction(self, step: int, schedule: UpdateSchedule) -> float:
        """Return the drop fraction at ``step``, in [0, 1]."""
        return schedule.fraction(step)

    def initial_density(self, density: float) -> float:
        """Return the density that training starts from; it is at least the target ``density``."""
        return density

    def live_count(self, shape: tuple[int, ...], target: int) -> int:
        """Return the final live count of a layer: ``target``, or a count that the method allows."""
        return target

    def initial_mask(self, scores: Tensor, live: int) -> Tensor:
        """Return the mask of the ``live`` highest scores, bool, of their shape.

        A method whose masks have a structure returns the best mask that has this structure. A mask
        that the user gives is refused if it does not come back unchanged when it is passed here as
        scores.
        """
        return largest(scores.reshape(-1), live).view(scores.shape)

    def prepare_forward(self, model: nn.Module, update: Update) -> None:
        """Write values to weights that are not live, for the forward pass of an update.

        It is called before the first training pass of ``model`` for an update, and again, with the
        same random numbers, if the values were removed because a model was saved before the step.
        The values must not change the model's outputs. After the step they are zero again.
        """
        raise TypeError(f"method {self.name!r} does not prepare a forward pass.")

    @abstractmethod
    def moves(self, layers: Sequence[SparseLayer], update: Update) -> list[Move]:
        """Return how much to drop and grow in each of ``layers``, in their order.

        For a :class:`Rewiring`, which names the weights itself, no scores are asked for.
        """

    def drop_scores(self, layer: SparseLayer, update: Update) -> Tensor:
        """Return a score for each live weight, ``(live,)``; the lowest are dropped.

        The default is the magnitude. :meth:`SparseLayer.gather` brings any tensor of the weight's
        shape into this form.
        """
        return layer.gather(layer.weight).abs()

    def grow_scores(self, layer: SparseLayer, update: Update) -> Tensor:
        """Return a score for each weight, of the weight's shape; the highest candidates grow.

        Scores of survivors don't matter. A weight that this update drops is a candidate, unless
        ``regrow="never"``.
        """
        raise TypeError(
            f"method {self.name!r} does not grow weights, because it has no grow_scores(), but its "
            "moves() returned a Move with grow above 0."
        )

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
    """Drops ``int(fraction * live)`` weights of each layer and grows the same number.

    So live counts stay the same. With ``regrow="never"`` it drops no more weights than it can grow.
    Under weight norm every slice keeps a live weight, so it may drop fewer weights.

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

    keeps_live_counts: ClassVar[bool] = True

    def moves(self, layers: Sequence[SparseLayer], update: Update) -> list[Move]:
        """Return for each layer how many weights to drop, and the same number to grow."""
        return [self._move(layer, update.fraction) for layer in layers]

    @abstractmethod
    def grow_scores(self, layer: SparseLayer, update: Update) -> Tensor:
        """Return a score for each weight, of the weight's shape; the highest candidates grow."""

    def _move(self, layer: SparseLayer, fraction: float) -> Move:
        count = min(int(fraction * layer.live), layer.droppable)
        if self.regrow == "never":
            count = min(count, layer.numel - layer.live)
        return Move(drop=count, grow=count)
