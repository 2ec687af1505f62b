"""The optimizer's state while the parameters of a smaller model are in its param groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.transition import Transition
from sparseopt.optimizer.state import CompactState, StateBackend, unhooked_step
from sparseopt.optimizer.state.base import Closure
from sparseopt.optimizer.state.fresh import tensors_in
from sparseopt.speedup.compacted_training.parameter_swap import Lent

__all__ = ["CompactedBackend"]


class CompactedBackend(StateBackend):
    """Steps the inner optimizer on smaller parameters.

    All entries of a smaller layer are live. Compact state has the same values in the same order,
    one for each live weight, so it is only given another shape. A parameter without a mask is
    stepped whole, with dense state: weight decay and momentum move dropped channels' entries too.

    Args:
        whole: the store of the whole parameters.
        lent: the smaller parameters; buffers, and parameters that are not trained, may be among
            them.
        bring_back: makes model and optimizer whole again.
    """

    gathers = True

    def __init__(
        self, whole: CompactState, lent: Sequence[Lent], bring_back: Callable[[], None]
    ) -> None:
        super().__init__(whole.inner, whole.layers)
        self.whole = whole
        self._bring_back = bring_back
        trained = {parameter for group in self.inner.param_groups for parameter in group["params"]}
        smaller = {one.whole: one.smaller for one in lent if one.whole in trained}
        self._smaller = {
            layer: smaller[layer.weight] for layer in whole.layers if layer.weight in smaller
        }
        masked = {layer.weight for layer in self._smaller}
        self._unmasked = [one for one in lent if one.whole in smaller and one.whole not in masked]
        self._place_of = smaller
        self._is_lent = False

    def take_over(self) -> None:
        """Put the smaller parameters into the param groups, with their state.

        If it fails, :meth:`give_back` undoes what it did.
        """
        shaped = [
            (container, key, _shaped(values, parameter))
            for layer, parameter in self._smaller.items()
            for container, key, values, _ in self.whole.per_weight(layer, torch.Size([layer.live]))
        ]
        self._is_lent = True
        for container, key, values in shaped:
            container[key] = values
        self._exchange(self._place_of)

    def give_back(self) -> None:
        """Put the whole parameters back into the param groups, with what became of their state."""
        self._exchange({smaller: whole for whole, smaller in self._place_of.items()})
        for layer, parameter in self._smaller.items():
            for container, key, _, values in tensors_in(self.inner.state.get(layer.weight, {})):
                if values.shape == parameter.shape:
                    container[key] = values.reshape(-1)
            self.whole.adopt(layer, compact=True)
        self._is_lent = False

    def step(self, closure: Closure | None = None) -> Any:
        """Step the inner optimizer; see :meth:`StateBackend.step`.

        The closure is evaluated before, on the smaller parameters: element-wise optimizers evaluate
        it once, before anything else.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._is_lent:
            with self._unmasked_whole():
                unhooked_step(self.inner)()
        else:
            # The closure looked at the whole, by a state dict say.
            self.whole.step()
        return loss

    def bring_back(self) -> None:
        """Make model and optimizer whole; see :meth:`StateBackend.bring_back`."""
        self._bring_back()

    def adopt(self, layer: SparseLayer, *, compact: bool = False) -> None:
        """Leave it to the store of the whole; see :meth:`StateBackend.adopt`."""
        self._bring_back()
        self.whole.adopt(layer, compact=compact)

    def move(self, layer: SparseLayer, transition: Transition) -> None:
        """Leave it to the store of the whole; see :meth:`StateBackend.move`."""
        self._bring_back()
        self.whole.move(layer, transition)

    def release(self) -> None:
        """Leave it to the store of the whole; see :meth:`StateBackend.release`."""
        self._bring_back()
        self.whole.release()

    @contextmanager
    def _unmasked_whole(self) -> Iterator[None]:
        """Have the inner optimizer step the whole of each parameter that has no mask."""
        if not self._unmasked:
            yield
            return
        try:
            for one in self._unmasked:
                one.write_back()
                if one.smaller.grad is not None:
                    one.whole.grad = one.spread(one.smaller.grad)
            self._exchange({one.smaller: one.whole for one in self._unmasked})
            yield
        finally:
            self._exchange({one.whole: one.smaller for one in self._unmasked})
            for one in self._unmasked:
                one.whole.grad = None
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
