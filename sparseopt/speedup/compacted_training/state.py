"""The optimizer's state while its param groups contain the parameters of a smaller model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sparseopt.masks.drop_and_grow import Transition
from sparseopt.masks.layer import SparseLayer
from sparseopt.optimizer.state import LiveState, StateBackend, unhooked_step
from sparseopt.optimizer.state.base import Closure
from sparseopt.optimizer.state.fresh import tensors_in
from sparseopt.speedup.compacted_training.parameter_swap import SwappedTensor
from sparseopt.utils.closures import evaluate

__all__ = ["CompactedBackend"]


class CompactedBackend(StateBackend):
    """Steps the inner optimizer on smaller parameters.

    All entries of a smaller layer are live. Live state has the same values in the same order,
    one for each live weight, so it only needs another shape. A parameter without a mask is stepped
    in full, with dense state, because weight decay and momentum move the entries of dropped
    channels too.

    Args:
        full: the backend of the full parameters.
        swapped: the smaller tensors; buffers, and parameters that are not trained, may be among
            them.
        make_full: a function that swaps the full parameters of model and optimizer in again.
    """

    gathers = True

    def __init__(
        self, full: LiveState, swapped: Sequence[SwappedTensor], make_full: Callable[[], None]
    ) -> None:
        super().__init__(full.inner, full.layers)
        self.full = full
        self._make_full = make_full
        trained = {parameter for group in self.inner.param_groups for parameter in group["params"]}
        smaller = {swap.full: swap.smaller for swap in swapped if swap.full in trained}
        self._smaller = {
            layer: smaller[layer.weight] for layer in full.layers if layer.weight in smaller
        }
        masked = {layer.weight for layer in self._smaller}
        self._unmasked = [
            swap for swap in swapped if swap.full in smaller and swap.full not in masked
        ]
        self._place_of = smaller
        self._is_swapped_in = False

    def swap_in(self) -> None:
        """Put the smaller parameters into the param groups, with their state.

        If this fails half-way, :meth:`swap_out` restores the full parameters.
        """
        shaped = [
            (container, key, _shaped(values, parameter))
            for layer, parameter in self._smaller.items()
            for container, key, values, _ in self.full.per_weight(layer, torch.Size([layer.live]))
        ]
        self._is_swapped_in = True
        for container, key, values in shaped:
            container[key] = values
        self._exchange(self._place_of)

    def swap_out(self) -> None:
        """Put the full parameters back into the param groups, with the smaller ones' state."""
        self._exchange({smaller: full for full, smaller in self._place_of.items()})
        for layer, parameter in self._smaller.items():
            for container, key, _, values in tensors_in(self.inner.state.get(layer.weight, {})):
                if values.shape == parameter.shape:
                    container[key] = values.reshape(-1)
            self.full.load_layer(layer, live_only=True)
        self._is_swapped_in = False

    def step(self, closure: Closure | None = None) -> Any:
        """Step the inner optimizer; see :meth:`StateBackend.step`.

        The closure is evaluated first, on the smaller parameters: element-wise optimizers evaluate
        it once, before anything else.
        """
        loss = evaluate(closure)
        if self._is_swapped_in:
            with self._unmasked_full():
                unhooked_step(self.inner)()
        else:
            # The closure swapped the full parameters in, for example by saving a state dict.
            self.full.step()
        return loss

    def materialize(self) -> None:
        """Swap the full parameters in; see :meth:`StateBackend.materialize`."""
        self._make_full()

    def load_layer(self, layer: SparseLayer, *, live_only: bool = False) -> None:
        """Call the backend of the full parameters; see :meth:`StateBackend.load_layer`."""
        self._make_full()
        self.full.load_layer(layer, live_only=live_only)

    def apply_transition(self, layer: SparseLayer, transition: Transition) -> None:
        """Call the full parameters' backend; see :meth:`StateBackend.apply_transition`."""
        self._make_full()
        self.full.apply_transition(layer, transition)

    def to_dense(self) -> None:
        """Call the backend of the full parameters; see :meth:`StateBackend.to_dense`."""
        self._make_full()
        self.full.to_dense()

    def dense_entry(self, layer: SparseLayer) -> dict[str, Any]:
        """Call the backend of the full parameters; see :meth:`StateBackend.dense_entry`."""
        self._make_full()
        return self.full.dense_entry(layer)

    @contextmanager
    def _unmasked_full(self) -> Iterator[None]:
        """Swap in the full tensor of each parameter without a mask, with its gradient.

        Invariant: on exit, also after an error, the smaller parameters are in the groups again, and
        have the values of the step.
        """
        if not self._unmasked:
            yield
            return
        try:
            for swap in self._unmasked:
                swap.write_back()
                if swap.smaller.grad is not None:
                    swap.full.grad = swap.spread(swap.smaller.grad)
            self._exchange({swap.smaller: swap.full for swap in self._unmasked})
            yield
        finally:
            self._exchange({swap.full: swap.smaller for swap in self._unmasked})
            for swap in self._unmasked:
                swap.full.grad = None
                swap.refresh()

    def _exchange(self, others: Mapping[Tensor, Tensor]) -> None:
        for group in self.inner.param_groups:
            group["params"] = [others.get(parameter, parameter) for parameter in group["params"]]
        for parameter, other in others.items():
            if parameter in self.inner.state:
                self.inner.state[other] = self.inner.state.pop(parameter)


def _shaped(values: Tensor, parameter: Tensor) -> Tensor:
    """Return ``values``, one for each entry, in the parameter's shape and layout."""
    like = torch.empty_like(parameter, dtype=values.dtype, requires_grad=False)
    return like.copy_(values.view(parameter.shape))
