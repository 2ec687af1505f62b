"""Weights that leave the model while an optimizer masks them, as when a head is replaced."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, nn

from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.maskable_weights import optimizer_weights
from sparseopt.optimizer.mask_updates import MaskUpdater
from sparseopt.optimizer.state import LiveState, MaskedState

__all__ = ["departed_layers", "forget_layers", "warn_of_departed"]


def departed_layers(
    layers: Sequence[SparseLayer], groups: list[dict[str, Any]], model: nn.Module | None
) -> list[SparseLayer]:
    """Return the layers whose weight is no longer in any param group, nor in the model.

    Without a model, these are the layers whose name now belongs to another parameter of the groups.
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
    """Remove ``departed`` from the updater's list of layers, and remove all their state.

    The state of other parameters that left with them, such as biases, is removed too: torch can't
    make a state dict with state of parameters that are in no param group.
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
    # Some optimizers have state whose keys are names.
    state: dict[Any, Any] = inner.state
    for key in [key for key in state if isinstance(key, Tensor) and key not in kept]:
        del state[key]


def warn_of_departed(updater: MaskUpdater, model: nn.Module | None, *, stacklevel: int) -> None:
    """Warn once if ``model`` no longer has the weights of the updater's layers.

    Args:
        updater: the mask updater, with the layers.
        model: the model that the layers were made for, if it is known.
        stacklevel: the stack level of the warning; 1 is this function.
    """
    # Another backend may have swapped the weights for smaller ones.
    if model is None or not isinstance(updater.backend, (LiveState, MaskedState)):
        return
    outside = _outside(updater.layers, model)
    if not outside:
        return
    others = len(outside) - 1
    more = f" (and of {others} more layer{'s' if others > 1 else ''})" if others else ""
    updater.warn_once(
        "departed",
        f"the weight of {outside[0].name!r}{more} is no longer a parameter of the model: the "
        "parameter that replaced it has no mask, and is trained only if a param group has it. "
        "Masks, density and summary() describe the old weight. Make a new optimizer and a new "
        "SparseOptimizer.",
        stacklevel=stacklevel + 1,
    )


def _outside(layers: Collection[SparseLayer], model: nn.Module) -> list[SparseLayer]:
    held = {id(parameter) for parameter in model.parameters()}
    return [layer for layer in layers if id(layer.weight) not in held]
