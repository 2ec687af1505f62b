"""The description of an update that a method gets, and the moves that it returns."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseopt.distributed.dtensor import shard_like
from sparseopt.masks.layer import SparseLayer
from sparseopt.methods.gradient_memory import AccumulatedGradients
from sparseopt.methods.state import LayerState, MethodState, RunState
from sparseopt.schedules import UpdateSchedule
from sparseopt.utils.deprecation import renamed_member
from sparseopt.utils.random import uniform

__all__ = ["Move", "Rewiring", "Update"]


@dataclass(frozen=True)
class Update:
    """The update that a method scores, or the step that it observes.

    Attributes:
        step: the number of this call of ``step()``, counted from 1.
        fraction: the drop fraction now, in [0, 1].
        schedule: the optimizer's schedule.
        total_steps: the horizon, if it is known.
        generator: the optimizer's random source, on the CPU and the same on every rank.
        memory: the gradients accumulated for :attr:`Method.memory`, this step included.
        layers: all layers in the model's order, including those that the update leaves out.
        state: the method's state; read it by :meth:`layer_state` and :attr:`run_state`.
        zero_gradients: the ids of gradients that are zero in every entry.

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
    memory: AccumulatedGradients | None = None
    layers: Sequence[SparseLayer] = ()
    state: MethodState | None = None
    zero_gradients: Collection[int] = ()

    def has_gradient(self, layer: SparseLayer) -> bool:
        """Whether ``layer`` has a gradient that is not zero in every entry.

        ``zero_grad(set_to_none=False)`` leaves a zero gradient on a layer that was not used.
        """
        gradient = layer.weight.grad
        return gradient is not None and id(gradient) not in self.zero_gradients

    def layer_state(self, layer: SparseLayer) -> LayerState:
        """Return the method's state of ``layer``: tensors by name, to be changed in place.

        :meth:`Method.initial_layer_state` returned their initial values. Assigning a tensor
        of the same shape to a name copies its values.

        Raises:
            ValueError: if the layer's ``is_dense`` is true, so that no update moves it.
        """
        return self._state.of(layer)

    @property
    def run_state(self) -> RunState:
        """The method's state of the run, by name, to be read and assigned.

        :meth:`Method.initial_run_state` returned the initial values.
        """
        return self._state.run

    def accumulated_gradient(self, layer: SparseLayer) -> Tensor:
        """Return the gradient of ``layer`` that :attr:`Method.memory` has accumulated.

        The tensor has the weight's shape and at least single precision. It is 0 for weights whose
        gradients were not accumulated.
        """
        if self.memory is None:
            raise TypeError(
                "the method accumulates no gradients, because its memory is None. Make its memory "
                "property return a rule such as Smoothed(0.9)."
            )
        return self.memory.of(layer)

    remembered = renamed_member("remembered", "accumulated_gradient")

    def random_scores(self, layer: SparseLayer) -> Tensor:
        """Draw one uniform number for each weight of ``layer``: the weight's shape and device.

        Numbers are drawn on the CPU in logical order, so they are the same on every device, in
        every memory format and on every rank. They are sharded as the weight is.
        """
        scores = uniform(layer.weight.shape, self.generator)
        return shard_like(scores.to(layer.weight.device), layer.weight)

    @property
    def _state(self) -> MethodState:
        if self.state is None:
            raise TypeError("this Update has no state, because an optimizer did not make it.")
        return self.state


@dataclass(frozen=True)
class Move:
    """How many weights of a layer to drop and to grow in one update.

    Attributes:
        drop: how many live weights to drop, the lowest scores first.
        grow: how many of the weights that did not survive to grow, the highest scores first.

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
        mask: which weights are live afterwards, the survivors included, bool, ``(numel,)``.
        values: the first values of new weights, of the weight's shape; 0 by default.

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
