"""What a method is told about an update, and how it answers: how much moves, or what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseopt.distributed.dtensor import shard_like
from sparseopt.masks.layer import SparseLayer
from sparseopt.methods.gradient_memory import RememberedGradients
from sparseopt.methods.state import LayerState, MethodState, RunState
from sparseopt.schedules import UpdateSchedule
from sparseopt.utils.random import uniform

__all__ = ["Move", "Rewiring", "Update"]


@dataclass(frozen=True)
class Update:
    """What a method is told about the update that it scores, or the step that it observes.

    Attributes:
        step: the call of ``step()`` that it is, counted from 1.
        fraction: the drop fraction now, in [0, 1].
        schedule: the optimizer's schedule.
        total_steps: the horizon, if it is known.
        generator: the optimizer's random source, on the CPU and the same on every rank.
        memory: what the optimizer remembers for :attr:`Method.memory`, this step included.
        layers: all layers in the model's order, those that sit the update out included.
        state: what the optimizer keeps for the method; read it by :meth:`layer_state` and
            :attr:`run_state`.

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
    state: MethodState | None = None

    def layer_state(self, layer: SparseLayer) -> LayerState:
        """Return what the method keeps for ``layer``: tensors by name, to be changed in place.

        They began as :meth:`Method.initial_layer_state` says. Assigning to a name copies a tensor
        of the same shape into the one that is held.

        Raises:
            ValueError: if the layer is dense for ever, so that no update moves it.
        """
        return self._state.of(layer)

    @property
    def run_state(self) -> RunState:
        """What the method keeps for the whole run, by name, to be read and assigned.

        It began as :meth:`Method.initial_run_state` says.
        """
        return self._state.run

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
        every memory format and on every rank. They are sharded as the weight is.
        """
        scores = uniform(layer.weight.shape, self.generator)
        return shard_like(scores.to(layer.weight.device), layer.weight)

    @property
    def _state(self) -> MethodState:
        if self.state is None:
            raise TypeError("there is no state here: this Update was not made by an optimizer.")
        return self.state


@dataclass(frozen=True)
class Move:
    """How many weights of a layer to drop and to grow in one update.

    Attributes:
        drop: how many live weights to drop, by lowest score.
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
