"""Optimizer state for live weights only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sparseopt.layers import SparseLayer, Transition
from sparseopt.state.base import Closure, StateStore, unhooked_step

__all__ = ["CompactState"]


class CompactState(StateStore):
    """Lends the inner optimizer the live weights of each layer as a 1-D tensor.

    During a step the parameter holds its live weights and their gradients, ``(live,)``, gathered
    from the dense ones; afterwards they are scattered back. So an element-wise optimizer makes
    state for live weights only: it takes ``density`` of the memory and the step ``density`` of
    the work, a dropped weight has none that could bring it back, and a grown weight starts with
    a fresh parameter's. The state stays keyed by the user's own parameter. A layer that is full
    is stepped as it is.
    """

    def step(self, closure: Closure | None = None) -> Any:
        """Step the inner optimizer; see :meth:`StateStore.step`.

        The closure sees the dense weights, so it is evaluated before they are lent. Element-wise
        optimizers evaluate it once, before anything else, so nothing differs.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with self._lent():
            unhooked_step(self.inner)()
        return loss

    def adopt(self, layer: SparseLayer, *, compact: bool = False) -> None:
        """Gather dense state; see :meth:`StateStore.adopt`."""
        if compact or layer.is_full:
            return
        for entry, key, values, _ in self.per_weight(layer, layer.weight.shape):
            entry[key] = layer.gather(values)

    def move(self, layer: SparseLayer, transition: Transition) -> None:
        """Bring the state of the new live weights together; see :meth:`StateStore.move`."""
        shape = layer.weight.shape if layer.is_full else torch.Size([layer.live])
        held = list(self.per_weight(layer, shape))
        kept_of_old = layer.gather_flat(transition.kept)
        layer.commit(transition)
        kept_of_new = layer.gather_flat(transition.kept)
        for entry, key, values, fresh in held:
            moved = values.new_full((layer.live,), fresh)
            moved.masked_scatter_(kept_of_new, values.reshape(-1).masked_select(kept_of_old))
            entry[key] = layer.expand(moved) if layer.is_full else moved

    def release(self) -> None:
        """Scatter all state into dense tensors; see :meth:`StateStore.release`."""
        for layer in self.layers:
            if layer.is_full:
                continue
            for entry, key, values, fresh in self.per_weight(layer, torch.Size([layer.live])):
                entry[key] = layer.expand(values, fresh)

    @contextmanager
    def _lent(self) -> Iterator[None]:
        """Hold live weights and gradients in the parameters; put everything back at the end."""
        lent = []
        try:
            for layer in self.layers:
                weight, gradient = layer.weight, layer.weight.grad
                if gradient is None or layer.is_full:
                    continue
                dense = weight.detach()
                live, live_gradient = layer.gather(dense), layer.gather(gradient)
                lent.append((layer, dense, gradient))
                weight.grad = None
                weight.data = live
                weight.grad = live_gradient
            yield
        finally:
            for layer, dense, gradient in lent:
                weight = layer.weight
                values = weight.detach()
                weight.grad = None
                weight.data = dense
                weight.grad = gradient
                # Zeroed first, in case somebody wrote to dropped weights.
                layer.scatter_(weight.detach().zero_(), values)
