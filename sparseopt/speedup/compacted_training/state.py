"""The optimizer's state while the parameters of a smaller model are in its param groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sparseopt.masks.drop_and_grow import Transition
from sparseopt.masks.layer import SparseLayer
from sparseopt.optimizer.state import CompactState, StateBackend, unhooked_step
from sparseopt.optimizer.state.base import Closure
from sparseopt.optimizer.state.fresh import tensors_in
from sparseopt.speedup.compacted_training.parameter_swap import SwappedTensor
from sparseopt.utils.closures import evaluate

__all__ = ["CompactedBackend"]


class CompactedBackend(StateBackend):
    """Steps the inner optimizer on smaller parameters.

    All entries of a smaller layer are live. Compact state has the same values in the same order,
    one for each live weight, so it is only given another shape. A parameter without a mask is
    stepped in full, with dense state: weight decay and momentum move dropped channels' entries too.

    Args:
        full: the backend of the full parameters.
        swapped: the smaller parameters; buffers, and parameters that are not trained, may be among
            them.
        make_full: swaps the full parameters of model and optimizer in again.
    """

    gathers = True

    def __init__(
        self, full: CompactState, swapped: Sequence[SwappedTensor], make_full: Callable[[], None]
    ) -> None:
        super().__init__(full.inner, full.layers)
        self.full = full
        self._make_full = make_full
        trained = {parameter for group in self.inner.param_groups for parameter in group["params"]}
        smaller = {one.full: one.smaller for one in swapped if one.full in trained}
        self._smaller = {
            layer: smaller[layer.weight] for layer in full.layers if layer.weight in smaller
        }
        masked = {layer.weight for layer in self._smaller}
        self._unmasked = [one for one in swapped if one.full in smaller and one.full not in masked]
        self._place_of = smaller
        self._is_swapped_in = False

    def swap_in(self) -> None:
        """Put the smaller parameters into the param groups, with their state.

        If it fails, :meth:`swap_out` undoes what it did.
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
        """Put the full parameters, with the smaller ones' state, back into the param groups."""
        self._exchange({smaller: full for full, smaller in self._place_of.items()})
        for layer, parameter in self._smaller.items():
            for container, key, _, values in tensors_in(self.inner.state.get(layer.weight, {})):
                if values.shape == parameter.shape:
                    container[key] = values.reshape(-1)
            self.full.load_layer(layer, compact=True)
        self._is_swapped_in = False

    def step(self, closure: Closure | None = None) -> Any:
        """Step the inner optimizer; see :meth:`StateBackend.step`.

        The closure is evaluated before, on the smaller parameters: element-wise optimizers evaluate
        it once, before anything else.
        """
        loss = evaluate(closure)
        if self._is_swapped_in:
            with self._unmasked_full():
                unhooked_step(self.inner)()
        else:
            # The closure swapped the full parameters in, by a state dict say.
            self.full.step()
        return loss

    def materialize(self) -> None:
        """Swap the full parameters in; see :meth:`StateBackend.materialize`."""
        self._make_full()

    def load_layer(self, layer: SparseLayer, *, compact: bool = False) -> None:
        """Leave it to the backend of the full parameters; see :meth:`StateBackend.load_layer`."""
        self._make_full()
        self.full.load_layer(layer, compact=compact)

    def apply_transition(self, layer: SparseLayer, transition: Transition) -> None:
        """Leave it to the full backend; see :meth:`StateBackend.apply_transition`."""
        self._make_full()
        self.full.apply_transition(layer, transition)

    def to_dense(self) -> None:
        """Leave it to the backend of the full parameters; see :meth:`StateBackend.to_dense`."""
        self._make_full()
        self.full.to_dense()

    def dense_entry(self, layer: SparseLayer) -> dict[str, Any]:
        """Leave it to the backend of the full parameters; see :meth:`StateBackend.dense_entry`."""
        self._make_full()
        return self.full.dense_entry(layer)

    @contextmanager
    def _unmasked_full(self) -> Iterator[None]:
        """Have the inner optimizer step each parameter that has no mask in full."""
        if not self._unmasked:
            yield
            return
        try:
            for one in self._unmasked:
                one.write_back()
                if one.smaller.grad is not None:
                    one.full.grad = one.spread(one.smaller.grad)
            self._exchange({one.smaller: one.full for one in self._unmasked})
            yield
        finally:
            self._exchange({one.full: one.smaller for one in self._unmasked})
            for one in self._unmasked:
                one.full.grad = None
                one.refresh()

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
