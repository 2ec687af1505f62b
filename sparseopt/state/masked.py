"""Dense optimizer state that is masked after every step: right for any optimizer."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparseopt.layers import SparseLayer
from sparseopt.sharding import shard_like, whole
from sparseopt.state.base import Closure, StateStore, unhooked_step
from sparseopt.state.entries import is_factor, may_be_factor
from sparseopt.state.first_values import common_value, noting_first_values
from sparseopt.state.fresh import is_known
from sparseopt.transitions import Transition

__all__ = ["MaskedState"]


class MaskedState(StateStore):
    """Lets the inner optimizer step on dense tensors, and undoes what it did to dropped weights.

    After each step, dropped weights are zero and their per-weight state is that of a fresh
    parameter, whatever the optimizer did to them (Muon, for one, mixes all entries of a matrix).
    State of other shapes, such as Adafactor's factors, is left alone. What is fresh with optimizers
    that are not torch's, is noted when they make the state.
    """

    def __init__(self, inner: Optimizer, layers: list[SparseLayer]) -> None:
        super().__init__(inner, layers)
        self._fresh: dict[tuple[str, str], float] = {}
        self._factors: dict[tuple[str, int], bool] = {}

    def step(self, closure: Closure | None = None) -> Any:
        """Step the inner optimizer; see :meth:`StateStore.step`."""
        inner_step = unhooked_step(self.inner)
        with self._noting_fresh_values():
            if closure is None:
                self._mask_gradients()
                loss = inner_step()
            else:
                loss = inner_step(self._masked_closure(closure))
        self._mask_weights()
        self._mask_state()
        return loss

    def adopt(self, layer: SparseLayer, *, compact: bool = False) -> None:
        """Give dropped weights fresh state; see :meth:`StateStore.adopt`."""
        if compact:
            for entry, key, values, fresh in self.per_weight(layer, torch.Size([layer.live])):
                entry[key] = layer.expand(whole(values), fresh)
            return
        self._recognise_fresh_values(layer, self._state_names(layer))
        for entry, key, values, fresh in self.per_weight(layer, layer.weight.shape):
            entry[key] = shard_like(values, layer.weight)
            layer.mask_(entry[key], fresh)

    def move(self, layer: SparseLayer, transition: Transition) -> None:
        """Give weights that are not kept fresh state; see :meth:`StateStore.move`."""
        transition.make(layer)
        for _, _, values, fresh in self.per_weight(layer, layer.weight.shape):
            layer.retain_(values, transition.kept, fresh)

    def release(self) -> None:
        """Do nothing: the state is dense already."""

    def bring_back(self) -> None:
        """Do nothing: everything is in its place."""

    def is_factor(self, layer: SparseLayer, name: str) -> bool:
        """Decide by the shapes that other parameters have; see :meth:`StateStore.is_factor`."""
        if not may_be_factor(layer.weight):
            return False
        known = name, len(self.inner.state)
        if known not in self._factors:
            self._factors[known] = is_factor(name, self.inner.state)
        return self._factors[known]

    def fresh(self, layer: SparseLayer, group: dict[str, Any], name: str) -> float:
        """Know it of torch's optimizers, have noted it of others; see :meth:`StateStore.fresh`."""
        if is_known(self.inner):
            return super().fresh(layer, group, name)
        return self._fresh.get((layer.name, name), 0.0)

    @contextmanager
    def _noting_fresh_values(self) -> Iterator[None]:
        """Note what state begins with that the inner optimizer makes meanwhile."""
        if is_known(self.inner):
            yield
            return
        before = [self._state_names(layer) for layer in self.layers]
        with noting_first_values(self.inner) as begun:
            yield
        for layer, names in zip(self.layers, before, strict=True):
            noted = begun.get(layer.weight, {})
            for name, value in noted.items():
                self._fresh[layer.name, name] = value
            # An optimizer that brings an entry of its own has filled it unseen; where there was no
            # gradient, that is what is in it still.
            self._recognise_fresh_values(layer, self._state_names(layer) - names - set(noted))

    def _state_names(self, layer: SparseLayer) -> set[str]:
        return set(self.inner.state.get(layer.weight, ()))

    def _recognise_fresh_values(self, layer: SparseLayer, names: Collection[str]) -> None:
        """Take them from dropped weights' state: of a checkpoint, a new optimizer or a new entry.

        Args:
            layer: the layer.
            names: of the state.
        """
        if not names or is_known(self.inner) or layer.is_sharded:
            return
        for name in names:
            values = self.inner.state[layer.weight][name]
            if isinstance(values, Tensor) and values.shape == layer.weight.shape:
                dropped = values if layer.is_full else values[~layer.mask]
                self._fresh[layer.name, name] = common_value(dropped)

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
            if not layer.is_full:
                layer.mask_(layer.weight)

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
