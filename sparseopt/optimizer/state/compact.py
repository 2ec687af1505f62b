"""Optimizer state for live weights only, and the plan of a step that keeps it so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.transition import Transition
from sparseopt.optimizer.state.base import Closure, StateBackend, unhooked_step
from sparseopt.optimizer.state.gather import gradient_of
from sparseopt.optimizer.state.pools import Pool, make_pools, only_parameters

__all__ = ["CompactState", "StepPlan"]


class CompactState(StateBackend):
    """Lends the inner optimizer the live weights of the layers as 1-D tensors.

    During a step it sees live weights and their gradients only, gathered from the dense ones;
    afterwards they are scattered back. So an element-wise optimizer makes state for live weights
    only: it takes ``density`` of the memory and the step ``density`` of the work, a dropped weight
    has none that could bring it back, and a grown weight starts with a fresh parameter's. The state
    stays keyed by the user's own parameters. A layer that is full is stepped as it is.

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

    def __getstate__(self) -> dict[str, Any]:
        # A copy's would be of the original's parameters; the first step makes a new one.
        return {**self.__dict__, "_plan": None}

    def step(self, closure: Closure | None = None) -> Any:
        """Step the inner optimizer; see :meth:`StateBackend.step`.

        The closure sees the dense weights, so it is evaluated before they are lent. Element-wise
        optimizers evaluate it once, before anything else, so nothing differs.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        inner_step = unhooked_step(self.inner)
        plan = self._plan_step()
        with self.record_initial_state():
            for pool in plan.pools:
                pool.step(inner_step)
            with only_parameters(self.inner, plan.others), _lent(plan.lent):
                inner_step()
        return loss

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
        for layer in self.layers:
            if layer.is_full or not self.trains(layer):
                continue
            for entry, key, values, fresh in self.per_weight(layer, torch.Size([layer.live])):
                entry[key] = layer.expand(values, fresh)

    def _plan_step(self) -> StepPlan:
        """Keep the arrangement while it holds."""
        plan = self._plan
        if plan is None or not plan.holds(self.inner, self.layers):
            plan = StepPlan(self.inner, self.layers, pooled=self.pooled)
            self._plan = plan
            if self.pooled:
                self._separate(plan)
        return plan

    def _separate(self, plan: StepPlan) -> None:
        """Give layers that left a pool state of their own: a view would keep all of the pool's."""
        pooled = {layer for pool in plan.pools for layer in pool.layers}
        for layer in self.layers:
            entry = self.inner.state.get(layer.weight, {})
            for name, value in entry.items() if layer not in pooled else ():
                if isinstance(value, Tensor) and value.untyped_storage().nbytes() > value.nbytes:
                    entry[name] = value.clone()


@contextmanager
def _lent(layers: Sequence[SparseLayer]) -> Iterator[None]:
    """Hold live weights and gradients in the parameters; put everything back at the end."""
    lent = []
    try:
        for layer in layers:
            weight, dense, gradient = layer.weight, layer.weight.detach(), gradient_of(layer)
            live, live_gradient = layer.gather(dense), layer.gather(gradient)
            lent.append((layer, dense, gradient))
            weight.grad = None
            weight.data = live
            weight.grad = live_gradient
        yield
    finally:
        stepped = [layer.weight.detach() for layer, _, _ in lent]
        for layer, dense, gradient in lent:
            weight = layer.weight
            weight.grad = None
            weight.data = dense
            weight.grad = gradient
        for (layer, _, _), values in zip(lent, stepped, strict=True):
            layer.replace_(values)


class StepPlan:
    """How the parameters of one step are stepped, and of the next ones while :meth:`holds`.

    Args:
        inner: the optimizer.
        layers: its sparse layers.
        pooled: whether many layers may be one 1-D parameter.

    Attributes:
        pools: layers whose live weights are stepped together.
        lent: layers whose parameters hold live weights only during a step.
        others: parameters that are in no pool, by the id of their param group.
    """

    def __init__(self, inner: Optimizer, layers: Sequence[SparseLayer], *, pooled: bool) -> None:
        self._basis = _basis(inner, layers)
        lending = {layer.weight: layer for layer in _lending(layers)}
        self.pools = list(_pools(inner, lending)) if pooled else []
        in_pools = {layer.weight for pool in self.pools for layer in pool.layers}
        self.lent = [layer for weight, layer in lending.items() if weight not in in_pools]
        self.others = {
            id(group): [weight for weight in group["params"] if weight not in in_pools]
            for group in inner.param_groups
        }

    def holds(self, inner: Optimizer, layers: Sequence[SparseLayer]) -> bool:
        """Whether the same layers have gradients and nobody replaced their state."""
        return self._basis == _basis(inner, layers) and all(pool.fits() for pool in self.pools)


def _pools(inner: Optimizer, lending: Mapping[Any, SparseLayer]) -> Iterator[Pool]:
    for group in inner.param_groups:
        members = [lending[weight] for weight in group["params"] if weight in lending]
        yield from make_pools(inner, group, members)


def _lending(layers: Sequence[SparseLayer]) -> list[SparseLayer]:
    """Return the layers whose live weights are stepped in place of the dense ones."""
    return [layer for layer in layers if layer.weight.grad is not None and not layer.is_full]


def _basis(inner: Optimizer, layers: Sequence[SparseLayer]) -> tuple[Any, ...]:
    """Return what an arrangement follows from, to compare."""
    groups = inner.param_groups
    # Tensors would be compared by their entries. An arrangement keeps them, so ids don't recur.
    members = [(id(group), [id(weight) for weight in group["params"]]) for group in groups]
    return _lending(layers), members
