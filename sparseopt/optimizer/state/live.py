"""Optimizer state for live weights only: the plan of a step, and the changes in an update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparseopt.masks.drop_and_grow import Transition
from sparseopt.masks.layer import SparseLayer
from sparseopt.optimizer.state.base import Closure, StateBackend, unhooked_step
from sparseopt.optimizer.state.fresh import tensors_in
from sparseopt.optimizer.state.gather import Member, WholeParameter, gradient_of
from sparseopt.optimizer.state.pools import (
    Pool,
    is_small_and_dense,
    make_pools,
    with_own_memory,
)
from sparseopt.utils.closures import evaluate

__all__ = ["LiveState", "StepPlan"]

#: Up to this many live weights in pools, one call of the inner optimizer steps everything.
ONE_TURN: Final = 1 << 17


class LiveState(StateBackend):
    """Swaps in 1-D tensors of live weights for the layers while the inner optimizer steps.

    During a step the inner optimizer sees only live weights and their gradients. They are gathered
    from the dense tensors before the step and scattered back after it. So an element-wise optimizer
    makes state for live weights only. The state takes ``density`` of the memory, and the step
    ``density`` of the work. A dropped weight has no state that could revive it, and a grown weight
    starts with the state of a fresh parameter. The keys of the state are still the user's own
    parameters. Dense parameters, and layers that are full, are stepped as they are; small ones are
    stepped together with live weights.

    Args:
        inner: the optimizer.
        layers: its sparse layers; the list is shared and may grow.
        pooled: whether many layers may form one 1-D parameter. Otherwise each layer is a parameter
            of its own, and ``step`` of the inner optimizer is called once.
    """

    gathers = True

    def __init__(self, inner: Optimizer, layers: list[SparseLayer], *, pooled: bool) -> None:
        super().__init__(inner, layers)
        self.pooled = pooled
        self._plan: StepPlan | None = None
        #: Parameters whose state tensors are views of a pool's state.
        self._sharing: list[Tensor] = []

    def __getstate__(self) -> dict[str, Any]:
        # The plan refers to the original's parameters; the copy's first step makes a new plan.
        return {**self.__dict__, "_plan": None}

    def step(self, closure: Closure | None = None) -> Any:
        """Step the inner optimizer; see :meth:`StateBackend.step`.

        The closure sees the dense weights, so it is evaluated before the swap. Element-wise
        optimizers evaluate it once, before anything else, so nothing differs.
        """
        loss = None if closure is None else evaluate(closure)
        inner_step = unhooked_step(self.inner)
        plan = self._plan_step()
        if self.knows_fresh_state:
            self._take_turns(plan, inner_step)
        else:
            with self.record_initial_state():
                self._take_turns(plan, inner_step)
        return loss

    def _take_turns(self, plan: StepPlan, inner_step: Callable[[], Any]) -> None:
        """Let the inner optimizer step one turn after the other.

        In each turn the param groups contain only the parameters of this turn. Invariant: after the
        last turn, or after an error, the groups have their own lists again.
        """
        everything = [(group, group["params"]) for group in self.inner.param_groups]
        try:
            for turn in plan.turns:
                for group, _ in everything:
                    group["params"] = turn.parameters.get(id(group), [])
                _take_turn(turn, inner_step)
        finally:
            for group, parameters in everything:
                group["params"] = parameters

    def load_layer(self, layer: SparseLayer, *, live_only: bool = False) -> None:
        """Gather dense state; see :meth:`StateBackend.load_layer`."""
        # State may have been loaded into the tensors of pools, and may now differ between layers.
        self._plan = None
        if live_only:
            return
        self.recognise_fresh_values(layer, self.state_names(layer))
        if layer.is_full:
            return
        for entry, key, values, _ in self.per_weight(layer, layer.weight.shape):
            entry[key] = layer.gather(values)

    def apply_transition(self, layer: SparseLayer, transition: Transition) -> None:
        """Make the new live weights' state; see :meth:`StateBackend.apply_transition`."""
        shape = layer.weight.shape if layer.is_full else torch.Size([layer.live])
        held = list(self.per_weight(layer, shape))
        transition.make(layer)
        for entry, key, values, fresh in held:
            moved = transition.carry_over(values.reshape(-1), fresh)
            if layer.is_full:
                entry[key] = layer.expand(moved)
            elif moved.shape == values.shape:
                values.copy_(moved)
            else:
                entry[key] = moved

    def to_dense(self) -> None:
        """Scatter all state into dense tensors; see :meth:`StateBackend.to_dense`."""
        self._plan = None
        self._separate([])
        for layer in self.layers:
            if layer.is_full or not self.trains(layer):
                continue
            for entry, key, values, fresh in self.per_weight(layer, torch.Size([layer.live])):
                entry[key] = layer.expand(values, fresh)

    def dense_entry(self, layer: SparseLayer) -> dict[str, Any]:
        """Expand live state; see :meth:`StateBackend.dense_entry`."""
        entry, group = super().dense_entry(layer), self._group_of(layer.weight)
        for container, key, path, values in tensors_in(entry):
            if not layer.is_full and values.shape == (layer.live,) and values.dtype != torch.bool:
                container[key] = layer.expand(values, self.fresh(layer, group, path))
        return entry

    def _plan_step(self) -> StepPlan:
        """Return the plan of the last step if it still holds, else a new one."""
        plan = self._plan
        if plan is None or not plan.holds(self.inner, self.layers):
            plan = StepPlan(self.inner, self.layers, pooled=self.pooled)
            self._plan = plan
            self._separate([member.weight for pool in plan.pools for member in pool.members])
        return plan

    def _separate(self, pooled: list[Tensor]) -> None:
        """Copy the state of parameters that have left their pool.

        Until then it is a view, which would keep the memory of the pool's full state alive.

        Args:
            pooled: the parameters that are in pools now.
        """
        stay = set(pooled)
        for parameter in self._sharing:
            entry = self.inner.state.get(parameter, {})
            if parameter not in stay:
                entry.update({name: with_own_memory(value) for name, value in entry.items()})
        self._sharing = pooled


def _take_turn(turn: Turn, inner_step: Callable[[], Any]) -> None:
    """Step the parameters of one turn: gather live weights, step, scatter them back.

    Flat parameters of pools replace their members, and live weights replace the weights of single
    layers. Invariant: afterwards, also after an error, every parameter holds its dense weight and
    gradient again.
    """
    try:
        for pool in turn.pools:
            pool.stand_in()
        if turn.swapped:
            with _live_weights_swapped_in(turn.swapped):
                inner_step()
        else:
            inner_step()
        for pool in turn.pools:
            pool.write_back()
    finally:
        for pool in turn.pools:
            pool.stand_down()


@contextmanager
def _live_weights_swapped_in(layers: Sequence[SparseLayer]) -> Iterator[None]:
    """Swap live weights and gradients into the parameters, and swap the dense tensors back.

    Invariant: on exit, also after an error, every parameter has its dense weight and gradient, and
    the weight has the values of the step.
    """
    swapped = []
    try:
        for layer in layers:
            weight, dense, gradient = layer.weight, layer.weight.detach(), gradient_of(layer)
            live, live_gradient = layer.gather(dense), layer.gather(gradient)
            swapped.append((layer, dense, gradient))
            weight.grad = None
            weight.data = live
            weight.grad = live_gradient
        yield
    finally:
        stepped = [layer.weight.detach() for layer, _, _ in swapped]
        for layer, dense, gradient in swapped:
            weight = layer.weight
            weight.grad = None
            weight.data = dense
            weight.grad = gradient
        for (layer, _, _), values in zip(swapped, stepped, strict=True):
            layer._replace_(values)


@dataclass(frozen=True)
class Turn:
    """One call of the inner optimizer's step.

    Attributes:
        pools: the pools, each stepped as one parameter.
        swapped: the layers whose parameters hold live weights only.
        parameters: the parameters of each param group in this turn, by the id of the group.
    """

    pools: Sequence[Pool]
    swapped: Sequence[SparseLayer]
    parameters: Mapping[int, list[Any]]


class StepPlan:
    """The plan by which parameters are stepped: the turns of a step.

    It serves all steps for which :meth:`holds` is true. Each pool has a turn of its own, so that
    its gathered tensors are freed before the next pool. If all pools are small, one turn steps
    everything: for a small network, a call of an optimizer takes longer than its work.

    Args:
        inner: the optimizer.
        layers: its sparse layers.
        pooled: whether many layers, and small dense parameters, may be one 1-D parameter.

    Attributes:
        pools: the groups of layers that are stepped together.
        turns: the calls of the inner optimizer's step.
    """

    def __init__(self, inner: Optimizer, layers: Sequence[SparseLayer], *, pooled: bool) -> None:
        self._basis = _basis(inner, layers)
        by_weight = {layer.weight: layer for layer in _swapped_layers(layers)}
        self.pools: list[Pool] = []
        #: Parameters that would be in a pool if they had a gradient.
        self._waiting: list[Tensor] = []
        if pooled and by_weight:
            self._make_pools(inner, by_weight)
        in_pools = {member.weight for pool in self.pools for member in pool.members}
        swapped = [layer for weight, layer in by_weight.items() if weight not in in_pools]
        others = {
            id(group): [weight for weight in group["params"] if weight not in in_pools]
            for group in inner.param_groups
        }
        if sum(pool.live for pool in self.pools) <= ONE_TURN:
            for pool in self.pools:
                others[id(pool.group)].append(pool.flat_parameter)
            self.turns = [Turn(self.pools, swapped, others)]
        else:
            alone = [Turn([p], [], {id(p.group): [p.flat_parameter]}) for p in self.pools]
            self.turns = [*alone, Turn([], swapped, others)]

    def holds(self, inner: Optimizer, layers: Sequence[SparseLayer]) -> bool:
        """Whether the same parameters have gradients, and other code has not replaced state."""
        if self._basis != _basis(inner, layers):
            return False
        if any(weight.grad is not None for weight in self._waiting):
            return False
        return all(pool.fits() for pool in self.pools)

    def _make_pools(self, inner: Optimizer, by_weight: Mapping[Any, SparseLayer]) -> None:
        """Make the pools of each param group, from its sparse layers and small dense parameters.

        A small dense parameter without a gradient waits: the plan no longer holds when it gets one.
        """
        for group in inner.param_groups:
            members: list[Member] = []
            for weight in group["params"]:
                if weight in by_weight:
                    members.append(by_weight[weight])
                elif is_small_and_dense(weight, group):
                    if weight.grad is None:
                        self._waiting.append(weight)
                    else:
                        members.append(WholeParameter(weight))
            self.pools += make_pools(inner, group, members)


def _swapped_layers(layers: Sequence[SparseLayer]) -> list[SparseLayer]:
    """Return the layers whose live weights are stepped instead of the dense weights."""
    return [layer for layer in layers if layer.weight.grad is not None and not layer.is_full]


def _basis(inner: Optimizer, layers: Sequence[SparseLayer]) -> tuple[Any, ...]:
    """Return everything that a plan depends on, for comparison."""
    groups = inner.param_groups
    # Ids, because tensors would be compared by their entries. A plan keeps the tensors alive, so
    # no other tensor can get one of the ids.
    members = [(id(group), [id(weight) for weight in group["params"]]) for group in groups]
    return _swapped_layers(layers), members
