"""Dense optimizer state that is masked after every step: right for any optimizer."""

from __future__ import annotations

from typing import Any

import torch

from sparseopt.layers import SparseLayer, Transition
from sparseopt.sharding import shard_like, whole
from sparseopt.state.base import Closure, StateStore, unhooked_step

__all__ = ["MaskedState"]


class MaskedState(StateStore):
    """Lets the inner optimizer step on dense tensors, and undoes what it did to dropped weights.

    After each step, dropped weights are zero and their per-weight state is that of a fresh
    parameter, whatever the optimizer did to them (Muon, for one, mixes all entries of a matrix).
    State of other shapes, such as Adafactor's factors, is left alone.
    """

    def step(self, closure: Closure | None = None) -> Any:
        """Step the inner optimizer; see :meth:`StateStore.step`."""
        inner_step = unhooked_step(self.inner)
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
        for entry, key, values, fresh in self.per_weight(layer, layer.weight.shape):
            entry[key] = shard_like(values, layer.weight)
            layer.mask_(entry[key], fresh)

    def move(self, layer: SparseLayer, transition: Transition) -> None:
        """Give weights that are not kept fresh state; see :meth:`StateStore.move`."""
        for _, _, values, fresh in self.per_weight(layer, layer.weight.shape):
            layer.fill_where_not_(transition.kept, values, fresh)
        layer.commit(transition)

    def release(self) -> None:
        """Do nothing: the state is dense already."""

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
            if layer.weight.grad is not None and not layer.is_full:
                layer.mask_(layer.weight.grad)

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
