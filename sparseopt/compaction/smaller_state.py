"""The optimizer's state while the parameters of a smaller model are in its param groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sparseopt.layers import SparseLayer
from sparseopt.state import CompactState, StateStore, unhooked_step
from sparseopt.state.base import Closure
from sparseopt.state.entries import tensors_in
from sparseopt.transitions import Transition

__all__ = ["SmallerState"]


class SmallerState(StateStore):
    """Steps the inner optimizer on smaller parameters, all of whose entries are live.

    Compact state has the same values in the same order, one for each live weight, so it is only
    given another shape.

    Args:
        whole: the store of the whole parameters.
        smaller: for each of them that has dropped entries the smaller parameter; buffers may be
            among them.
        bring_back: makes model and optimizer whole again.
    """

    def __init__(
        self,
        whole: CompactState,
        smaller: Mapping[Tensor, Tensor],
        bring_back: Callable[[], None],
    ) -> None:
        super().__init__(whole.inner, whole.layers)
        self._whole = whole
        self._bring_back = bring_back
        self._smaller = {
            layer: smaller[layer.weight] for layer in whole.layers if layer.weight in smaller
        }
        for layer, parameter in self._smaller.items():
            live = torch.Size([layer.live])
            for container, key, values, _ in whole.per_weight(layer, live):
                container[key] = torch.empty_like(
                    parameter, dtype=values.dtype, requires_grad=False
                ).copy_(values.view(parameter.shape))
        self._exchange({layer.weight: value for layer, value in self._smaller.items()})

    def give_back(self) -> None:
        """Put the whole parameters back into the param groups, with what became of their state."""
        self._exchange({value: layer.weight for layer, value in self._smaller.items()})
        for layer, parameter in self._smaller.items():
            for container, key, _, values in tensors_in(self.inner.state.get(layer.weight, {})):
                if values.shape == parameter.shape:
                    container[key] = values.reshape(-1)
            self._whole.adopt(layer, compact=True)

    def step(self, closure: Closure | None = None) -> Any:
        """Step the inner optimizer as it is; see :meth:`StateStore.step`."""
        return unhooked_step(self.inner)(closure)

    def bring_back(self) -> None:
        """Make model and optimizer whole; see :meth:`StateStore.bring_back`."""
        self._bring_back()

    def adopt(self, layer: SparseLayer, *, compact: bool = False) -> None:
        """Leave it to the store of the whole; see :meth:`StateStore.adopt`."""
        self._bring_back()
        self._whole.adopt(layer, compact=compact)

    def move(self, layer: SparseLayer, transition: Transition) -> None:
        """Leave it to the store of the whole; see :meth:`StateStore.move`."""
        self._bring_back()
        self._whole.move(layer, transition)

    def release(self) -> None:
        """Leave it to the store of the whole; see :meth:`StateStore.release`."""
        self._bring_back()
        self._whole.release()

    def _exchange(self, others: Mapping[Tensor, Tensor]) -> None:
        for group in self.inner.param_groups:
            group["params"] = [others.get(parameter, parameter) for parameter in group["params"]]
        for parameter, other in others.items():
            if parameter in self.inner.state:
                self.inner.state[other] = self.inner.state.pop(parameter)
