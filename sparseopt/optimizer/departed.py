"""Weights that left the model while an optimizer masks them, as when a head is replaced."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, nn

from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.maskable_weights import optimizer_weights
from sparseopt.optimizer.mask_updates import MaskUpdater
from sparseopt.optimizer.state import CompactState, MaskedState

__all__ = ["departed_layers", "forget_layers", "warn_of_departed"]


def departed_layers(
    layers: Sequence[SparseLayer], groups: list[dict[str, Any]], model: nn.Module | None
) -> list[SparseLayer]:
    """Return the layers whose weight is in no param group any more, nor in the model.

    Without a model these are layers whose name belongs to another parameter of the groups now.
    """
    trained = {parameter for group in groups for parameter in group["params"]}
    left = [layer for layer in layers if layer.weight not in trained]
    if model is not None:
        return _outside(left, model)
    taken = set(optimizer_weights(groups).values()) if left else ()
    return [layer for layer in left if layer.name in taken]


def forget_layers(
    departed: Collection[SparseLayer], updater: MaskUpdater, model: nn.Module | None
) -> None:
    """Remove ``departed`` from the updater's list of layers, and all state that is kept for them.

    Optimizer state of other parameters that left with them, such as biases, goes too: torch makes
    no state dict of what is in no param group.
    """
    if not departed:
        return
    updater.layers[:] = [layer for layer in updater.layers if layer not in departed]
    for layer in departed:
        if updater.memory is not None:
            updater.memory.restore(layer, None)
        updater.state.forget(layer)
    inner = updater.backend.inner
    kept = {parameter for group in inner.param_groups for parameter in group["params"]}
    kept.update(() if model is None else model.parameters())
    # Some optimizers keep state under names too.
    state: dict[Any, Any] = inner.state
    for key in [key for key in state if isinstance(key, Tensor) and key not in kept]:
        del state[key]


def warn_of_departed(updater: MaskUpdater, model: nn.Module | None, *, stacklevel: int) -> None:
    """Warn once if ``model`` has no longer the weights of the updater's layers.

    Args:
        updater: has the layers.
        model: the model that they were made for, if it is known.
        stacklevel: of the warning, as seen from here; 1 is this function.
    """
    # Another backend may have swapped the weights for smaller ones.
    if model is None or not isinstance(updater.backend, (CompactState, MaskedState)):
        return
    outside = _outside(updater.layers, model)
    if not outside:
        return
    others = len(outside) - 1
    more = f" (and of {others} more layer{'s' if others > 1 else ''})" if others else ""
    updater.warn_once(
        "departed",
        f"the weight of {outside[0].name!r}{more} is no longer a parameter of the model: what took "
        "its place has no mask, and is not trained unless a param group has it. Masks, density and "
        "summary() are of the old weight. Make a new optimizer and a new SparseOptimizer.",
        stacklevel=stacklevel + 1,
    )


def _outside(layers: Collection[SparseLayer], model: nn.Module) -> list[SparseLayer]:
    held = {id(parameter) for parameter in model.parameters()}
    return [layer for layer in layers if id(layer.weight) not in held]
