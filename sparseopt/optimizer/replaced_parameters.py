"""Parameters that a framework replaces in the param groups after the optimizer was made.

With FSDP2, Accelerate shards the model after the optimizer was made, and then replaces the
parameters in ``param_groups`` by the sharded ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseopt.masks.layer import SparseLayer
from sparseopt.utils.hooks import Handle, WeakHook, call_before_forward

__all__ = ["ParameterSlots", "before_first_forward", "may_be_sharded_later", "rebind"]


class ParameterSlots:
    """The position of each layer's weight in the param groups, to detect replacements.

    Args:
        layers: the layers.
        groups: the param groups that contain the layers' weights.
    """

    def __init__(self, layers: Sequence[SparseLayer], groups: list[dict[str, Any]]) -> None:
        place_of = _places_of(groups)
        self._places = {
            layer: place_of[layer.weight] for layer in layers if layer.weight in place_of
        }
        # Strong references: torch can't move a DTensor whose parameter is referred to weakly.
        self._known = {id(parameter): parameter for parameter in place_of}

    def replaced(self, groups: list[dict[str, Any]]) -> list[tuple[SparseLayer, nn.Parameter]]:
        """Return the layers whose weight a new parameter of its shape has replaced.

        A parameter that was in the groups before is not a replacement: it moved up because others
        were removed. A weight at another position in ``groups`` was moved, not replaced, and may be
        replaced there later.
        """
        moved = []
        # No function is called here: this runs for every layer at every step.
        for layer, (number, index) in self._places.items():
            group = groups[number]["params"] if number < len(groups) else ()
            there = group[index] if index < len(group) else None
            if there is not layer.weight:
                moved.append((layer, there))
        if not moved:
            return []
        place_of = _places_of(groups)
        found = []
        for layer, there in moved:
            if layer.weight in place_of:
                self._places[layer] = place_of[layer.weight]
            elif self._replaces(there, layer):
                found.append((layer, there))
            else:
                # The weight was removed: a parameter that comes to its place later is another one.
                del self._places[layer]
        return found

    def _replaces(self, there: object, layer: SparseLayer) -> TypeGuard[nn.Parameter]:
        return (
            isinstance(there, nn.Parameter)
            and id(there) not in self._known
            and there.shape == layer.weight.shape
        )


def before_first_forward(model: nn.Module, act: Callable[[], Any]) -> Handle:
    """Call ``act``, a weakly held method, once before the next training forward pass."""
    hook = _Once(act)
    hook.handle = call_before_forward(model, hook)
    return hook.handle


class _Once(WeakHook):
    def __init__(self, act: Callable[[], Any]) -> None:
        super().__init__(act)
        self.handle: Handle | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not torch.is_grad_enabled() or torch.compiler.is_compiling() or self.handle is None:
            return
        self.handle.remove()
        self.handle = None
        self.act()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "handle": None}


def rebind(replaced: Sequence[tuple[SparseLayer, nn.Parameter]], inner: Optimizer) -> None:
    """Bind layers, and the state of ``inner``, to the parameters that replaced their weights.

    Collective if a new parameter is sharded.

    Args:
        replaced: the result of :meth:`ParameterSlots.replaced`.
        inner: the optimizer; its state must be dense.
    """
    for layer, weight in replaced:
        state = inner.state.pop(layer.weight, None)
        layer._rebind(weight)
        if state is not None:
            inner.state[weight] = state


def may_be_sharded_later() -> bool:
    """Whether there are several processes over which a model can be sharded."""
    return dist.is_available() and dist.is_initialized()


def _places_of(groups: list[dict[str, Any]]) -> dict[Tensor, tuple[int, int]]:
    """Return the position of each parameter: the number of its group, and its index there."""
    return {
        parameter: (number, index)
        for number, group in enumerate(groups)
        for index, parameter in enumerate(group["params"])
    }
