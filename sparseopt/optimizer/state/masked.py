"""Dense optimizer state that is masked after every step: right for any optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparseopt.distributed.dtensor import shard_like, whole
from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.transition import Transition
from sparseopt.optimizer.state.base import Closure, StateBackend, unhooked_step
from sparseopt.optimizer.state.fresh import is_factor, may_be_factor

__all__ = ["MaskedState"]


class MaskedState(StateBackend):
    """Lets the inner optimizer step on dense tensors, and undoes what it did to dropped weights.

    After each step, dropped weights are zero and their per-weight state is that of a fresh
    parameter, whatever the optimizer did to them (Muon, for one, mixes all entries of a matrix).
    State of other shapes, such as Adafactor's factors, is left alone.
    """

    gathers = False

    def __init__(self, inner: Optimizer, layers: list[SparseLayer]) -> None:
        super().__init__(inner, layers)
        self._factors: dict[tuple[str, int], bool] = {}

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
            # An error half-way, or Ctrl-C, leaves some weights stepped.
            self._mask_weights()
            self._mask_state()

    def load_layer(self, layer: SparseLayer, *, compact: bool = False) -> None:
        """Give dropped weights fresh state; see :meth:`StateBackend.load_layer`."""
        if compact:
            for entry, key, values, fresh in self.per_weight(layer, torch.Size([layer.live])):
                entry[key] = layer.expand(whole(values), fresh)
            return
        self.recognise_fresh_values(layer, self.state_names(layer))
        for entry, key, values, fresh in self.per_weight(layer, layer.weight.shape):
            entry[key] = shard_like(values, layer.weight)
            layer.mask_(entry[key], fresh)

    def apply_transition(self, layer: SparseLayer, transition: Transition) -> None:
        """Give weights that are not kept fresh state; see :meth:`StateBackend.apply_transition`."""
        transition.make(layer)
        for _, _, values, fresh in self.per_weight(layer, layer.weight.shape):
            layer.retain_(values, transition.kept, fresh)

    def to_dense(self) -> None:
        """Do nothing: the state is dense already."""

    def is_factor(self, layer: SparseLayer, name: str) -> bool:
        """Decide by the shapes that other parameters have; see :meth:`StateBackend.is_factor`."""
        if not may_be_factor(layer.weight):
            return False
        known = name, len(self.inner.state)
        if known not in self._factors:
            self._factors[known] = is_factor(name, self.inner.state)
        return self._factors[known]

    @contextmanager
    def record_initial_state(self) -> Iterator[Mapping[Tensor, dict[str, float]]]:
        """Look at dropped weights too; see :meth:`StateBackend.record_initial_state`."""
        if self.knows_fresh_state:
            yield {}
            return
        before = [self.state_names(layer) for layer in self.layers]
        with super().record_initial_state() as begun:
            yield begun
        for layer, names in zip(self.layers, before, strict=True):
            # An optimizer that brings an entry of its own has filled it unseen; where there was no
            # gradient, that is what is in it still.
            seen = names | set(begun.get(layer.weight, {}))
            self.recognise_fresh_values(layer, self.state_names(layer) - seen)

    def _masked_closure(self, closure: Closure) -> Closure:
        def masked() -> Any:
            # An optimizer that evaluates more than once has moved the weights in between.
            self._mask_weights()
            with torch.enable_grad():
                loss = closure()
            self._mask_gradients()
            return loss

        return masked

    def _mask_gradients(self) -> None:
        for layer in self.layers:
            gradient = layer.weight.grad
            if gradient is None or layer.is_full:
                continue
            if gradient.grad_fn is None:
                layer.mask_(gradient)
            else:
                # Others may need what it was for their own backward().
                layer.weight.grad = gradient.masked_fill(~layer.mask, 0.0)

    def _mask_weights(self) -> None:
        for layer in self.layers:
            layer.clear_dropped_()

    def _mask_state(self) -> None:
        by_weight = {layer.weight: layer for layer in self.layers if not layer.is_full}
        for group in self.inner.param_groups:
            for parameter in group["params"]:
                layer = by_weight.get(parameter)
                if layer is None:
                    continue
                for _, _, values, fresh in self.per_weight(layer, parameter.shape, group):
                    with torch.no_grad():
                        layer.mask_(values, fresh)
