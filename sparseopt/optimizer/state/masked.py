"""Dense optimizer state, masked after every step and update: correct for any optimizer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparseopt.distributed.dtensor import full_tensor, shard_like
from sparseopt.masks.drop_and_grow import Transition
from sparseopt.masks.layer import SparseLayer
from sparseopt.optimizer.gradients import mask_gradient
from sparseopt.optimizer.state.base import Closure, StateBackend, unhooked_step
from sparseopt.optimizer.state.fresh import (
    codes_of,
    each_of_shape,
    ends_in_shape,
    is_factor,
    may_be_factor,
    tensors_in,
    zero_code,
)
from sparseopt.optimizer.state.per_weight import PerWeight, probe_shape, show_per_weight
from sparseopt.utils.closures import evaluate

__all__ = ["MaskedState"]

logger = logging.getLogger("sparseopt")


class MaskedState(StateBackend):
    """Steps the inner optimizer on dense tensors, and resets dropped weights afterwards.

    After each step, dropped weights are zero and have the per-weight state of a fresh parameter,
    even if the optimizer changed them (Muon, for example, mixes all entries of a matrix).
    State is left alone unless it is known, or was shown, to be per weight: Adafactor's factors,
    for example, or moments in another basis. If such state has the weight's shape and is not a
    factor, it describes the old live weights. Then an update that moves the layer deletes all its
    state, and the optimizer makes it again.
    """

    gathers = False

    def __init__(self, inner: Optimizer, layers: list[SparseLayer]) -> None:
        super().__init__(inner, layers)
        self._factors: dict[tuple[str, int], bool] = {}
        self._per_weight: dict[tuple[int, torch.Size], PerWeight] = {}

    def step(self, closure: Closure | None = None) -> Any:
        """Step the inner optimizer; see :meth:`StateBackend.step`."""
        inner_step = unhooked_step(self.inner)
        try:
            with self.record_initial_state():
                if closure is None:
                    self._mask_gradients()
                    return inner_step()
                return inner_step(self._masked_closure(closure))
        finally:
            # After an error or Ctrl-C in the middle, some weights have been stepped.
            self._mask_weights()
            self._mask_state()

    def load_layer(self, layer: SparseLayer, *, live_only: bool = False) -> None:
        """Give dropped weights fresh state; see :meth:`StateBackend.load_layer`."""
        if live_only:
            for entry, key, values, fresh in self.per_weight(layer, torch.Size([layer.live])):
                entry[key] = layer.expand(full_tensor(values), fresh)
            return
        if not self.knows_fresh_state and self.trains(layer):
            # Now, before the optimizer changes the state that it made at construction.
            self._show(layer, self._group_of(layer.weight))
        self.recognise_fresh_values(layer, self.state_names(layer))
        for entry, key, values, fresh in self.per_weight(layer, layer.weight.shape):
            entry[key] = shard_like(values, layer.weight)
            layer._mask_(entry[key], fresh)

    def apply_transition(self, layer: SparseLayer, transition: Transition) -> None:
        """Give weights that are not kept fresh state; see :meth:`StateBackend.apply_transition`."""
        moves = transition.positions.numel() != layer.live or not bool(transition.kept.all())
        transition.make(layer)
        if moves and self._begins_again(layer):
            del self.inner.state[layer.weight]
        for _, _, values, fresh in self.per_weight(layer, layer.weight.shape):
            layer._retain_(values, transition.kept, fresh)

    def to_dense(self) -> None:
        """Do nothing: the state is dense already."""

    def per_weight(
        self, layer: SparseLayer, shape: torch.Size, group: dict[str, Any] | None = None
    ) -> Iterator[tuple[Any, Any, Tensor, float]]:
        """Yield state that is known or shown to be per weight; see :meth:`StateBackend.per_weight`.

        State with one more dimension is yielded in parts of the weight's shape. State in 8-bit
        codes is yielded as codes, with the code of 0. For both, assigning to the container has no
        effect: write to the tensor.
        """
        if self.knows_fresh_state or shape != layer.weight.shape:
            yield from super().per_weight(layer, shape, group)
            return
        group = group or self._group_of(layer.weight)
        for container, key, path, value in self._state_of_shape(layer):
            code = zero_code(self.inner.state[layer.weight], path, value)
            if code is not None:
                value, fresh = codes_of(value), float(code)
            elif self._show(layer, group).shown.get(path):
                fresh = self.fresh(layer, group, path)
            else:
                continue
            if code is None and value.shape == shape:
                yield container, key, value, fresh
            else:
                parts = list(each_of_shape(value, shape))
                for index, part in enumerate(parts):
                    yield parts, index, part, fresh

    def is_factor(self, layer: SparseLayer, path: str) -> bool:
        """Decide by the state of other parameters; see :meth:`StateBackend.is_factor`."""
        if not may_be_factor(layer.weight):
            return False
        known = path, len(self.inner.state)
        if known not in self._factors:
            self._factors[known] = is_factor(path, self.inner.state)
        return self._factors[known]

    @contextmanager
    def record_initial_state(self) -> Iterator[Mapping[Tensor, dict[str, float]]]:
        """Read dropped weights' state too; see :meth:`StateBackend.record_initial_state`."""
        if self.knows_fresh_state:
            yield {}
            return
        before = [self.state_names(layer) for layer in self.layers]
        with super().record_initial_state() as begun:
            yield begun
        for layer, names in zip(self.layers, before, strict=True):
            # If the optimizer makes a full entry itself, its first values are not recorded. But
            # dropped weights had no gradient, so their state still has its initial values.
            seen = names | set(begun.get(layer.weight, {}))
            self.recognise_fresh_values(layer, self.state_names(layer) - seen)

    def _state_of_shape(self, layer: SparseLayer) -> Iterator[tuple[Any, Any, str, Tensor]]:
        """Yield state of the weight's shape, without bool tensors; see :func:`tensors_in`."""
        for found in tensors_in(self.inner.state.get(layer.weight, {})):
            if ends_in_shape(found[3], layer.weight.shape) and found[3].dtype != torch.bool:
                yield found

    def _show(self, layer: SparseLayer, group: dict[str, Any]) -> PerWeight:
        """Return which state is per weight; it is found out once for each kind of weight."""
        kind = id(group), probe_shape(layer.weight.shape)
        if kind not in self._per_weight:
            found = self._per_weight[kind] = show_per_weight(self.inner, layer.weight)
            logger.info(
                "%s: state of the weight's shape, and whether it has one number a weight: %s.",
                type(self.inner).__name__,
                dict(found.shown) or "no copy of the optimizer could be stepped to find out",
            )
        return self._per_weight[kind]

    def _begins_again(self, layer: SparseLayer) -> bool:
        """Whether an update has to delete state, because it describes the old live weights."""
        if self.knows_fresh_state or layer.weight not in self.inner.state:
            return False
        entry = self.inner.state[layer.weight]
        found = self._show(layer, self._group_of(layer.weight))
        return found.can_begin_again and any(
            zero_code(entry, path, value) is None
            and not found.shown.get(path)
            and not self.is_factor(layer, path)
            for _, _, path, value in self._state_of_shape(layer)
        )

    def _masked_closure(self, closure: Closure) -> Closure:
        def masked() -> Any:
            # If the optimizer evaluates more than once, it has moved the weights in between.
            self._mask_weights()
            loss = evaluate(closure)
            self._mask_gradients()
            return loss

        return masked

    def _mask_gradients(self) -> None:
        for layer in self.layers:
            mask_gradient(layer)

    def _mask_weights(self) -> None:
        for layer in self.layers:
            layer._clear_dropped_()

    def _mask_state(self) -> None:
        """Give dropped weights the per-weight state of a fresh parameter."""
        by_weight = {layer.weight: layer for layer in self.layers if not layer.is_full}
        for group in self.inner.param_groups:
            for parameter in group["params"]:
                layer = by_weight.get(parameter)
                if layer is None:
                    continue
                for _, _, values, fresh in self.per_weight(layer, parameter.shape, group):
                    with torch.no_grad():
                        layer._mask_(values, fresh)
