"""Optimizer state for live weights only: the plan of a step, and what an update does to it."""

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

__all__ = ["CompactState", "StepPlan"]

#: Live weights in pools up to which one call of the inner optimizer steps everything.
ONE_TURN: Final = 1 << 17


class CompactState(StateBackend):
    """Lends the inner optimizer the live weights of the layers as 1-D tensors.

    During a step it sees live weights and their gradients only, gathered from the dense ones;
    afterwards they are scattered back. So an element-wise optimizer makes state for live weights
    only: it takes ``density`` of the memory and the step ``density`` of the work, a dropped weight
    has none that could bring it back, and a grown weight starts with a fresh parameter's. The state
    stays keyed by the user's own parameters. What is dense, layers that are full included, is
    stepped as it is; where it is small, together with live weights.

    Args:
        inner: the optimizer.
        layers: its sparse layers; the list is shared and may grow.
        pooled: whether many layers may be one 1-D parameter; otherwise each is one of its own,
            and ``step`` of the inner optimizer is called once.
    """

    gathers = True

    def __init__(self, inner: Optimizer, layers: list[SparseLayer], *, pooled: bool) -> None:
        super().__init__(inner, layers)
        self.pooled = pooled
        self._plan: StepPlan | None = None
        #: Parameters whose state is views of a pool's.
        self._sharing: list[Tensor] = []

    def __getstate__(self) -> dict[str, Any]:
        # A copy's would be of the original's parameters; the first step makes a new one.
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

        In each turn the param groups have only the parameters of the turn. Invariant: after the
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

    def load_layer(self, layer: SparseLayer, *, compact: bool = False) -> None:
        """Gather dense state; see :meth:`StateBackend.load_layer`."""
        # What was loaded may be written into the tensors that pools have, and differ by layer.
        self._plan = None
        if compact:
            return
        self.recognise_fresh_values(layer, self.state_names(layer))
        if layer.is_full:
            return
        for entry, key, values, _ in self.per_weight(layer, layer.weight.shape):
            entry[key] = layer.gather(values)

    def apply_transition(self, layer: SparseLayer, transition: Transition) -> None:
        """Collect the new live weights' state; see :meth:`StateBackend.apply_transition`."""
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
        """Expand what is compact; see :meth:`StateBackend.dense_entry`."""
        entry, group = super().dense_entry(layer), self._group_of(layer.weight)
        for container, key, path, values in tensors_in(entry):
            if not layer.is_full and values.shape == (layer.live,) and values.dtype != torch.bool:
                container[key] = layer.expand(values, self.fresh(layer, group, path))
        return entry

    def _plan_step(self) -> StepPlan:
        """Keep the arrangement while it holds."""
        plan = self._plan
        if plan is None or not plan.holds(self.inner, self.layers):
            plan = StepPlan(self.inner, self.layers, pooled=self.pooled)
            self._plan = plan
            self._separate([member.weight for pool in plan.pools for member in pool.members])
        return plan

    def _separate(self, pooled: list[Tensor]) -> None:
        """Give what left a pool state of its own: a view would keep all of the pool's.

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

    Flat parameters of pools replace their members, and live weights replace single layers.
    Invariant: afterwards, also after an error, every parameter holds its dense weight and gradient
    again.
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
    """Hold live weights and gradients in the parameters; put everything back at the end."""
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
        pools: each stepped as one parameter.
        swapped: layers whose parameters hold live weights only.
        parameters: what the inner optimizer is left with, by the id of the param group.
    """

    pools: Sequence[Pool]
    swapped: Sequence[SparseLayer]
    parameters: Mapping[int, list[Any]]


class StepPlan:
    """How the parameters of one step are stepped, and of the next ones while :meth:`holds`.

    Each pool has a turn of its own, so that what is gathered for one is freed before the next. If
    all of them are small, one turn is for everything: a call of an optimizer takes longer than its
    work for a small network.

    Args:
        inner: the optimizer.
        layers: its sparse layers.
        pooled: whether many layers, and small dense parameters, may be one 1-D parameter.

    Attributes:
        pools: what is stepped together.
        turns: the calls of the inner optimizer's step.
    """

    def __init__(self, inner: Optimizer, layers: Sequence[SparseLayer], *, pooled: bool) -> None:
        self._basis = _basis(inner, layers)
        by_weight = {layer.weight: layer for layer in _swapped_layers(layers)}
        self.pools: list[Pool] = []
        #: What would be in a pool if it had a gradient.
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
        """Whether the same parameters have gradients and nobody replaced their state."""
        if self._basis != _basis(inner, layers):
            return False
        if any(weight.grad is not None for weight in self._waiting):
            return False
        return all(pool.fits() for pool in self.pools)

    def _make_pools(self, inner: Optimizer, by_weight: Mapping[Any, SparseLayer]) -> None:
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
    """Return the layers whose live weights are stepped in place of the dense ones."""
    return [layer for layer in layers if layer.weight.grad is not None and not layer.is_full]


def _basis(inner: Optimizer, layers: Sequence[SparseLayer]) -> tuple[Any, ...]:
    """Return all that a plan depends on, for comparison."""
    groups = inner.param_groups
    # Tensors would be compared by their entries. A plan keeps them, so ids don't recur.
    members = [(id(group), [id(weight) for weight in group["params"]]) for group in groups]
    return _swapped_layers(layers), members
