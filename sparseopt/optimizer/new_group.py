"""Adds a param group later: makes its layers, and forgets layers that they replace."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn

from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.maskable_weights import model_weights
from sparseopt.methods.rigl_struct import RigLStruct
from sparseopt.optimizer.build import (
    MaskConfig,
    check_keeps_zeros,
    has_names,
    make_layers,
    selected_by,
    weights_for,
)
from sparseopt.optimizer.departed import departed_layers, forget_layers
from sparseopt.optimizer.find_weights import note_what_stays_dense
from sparseopt.optimizer.mask_updates import MaskUpdater
from sparseopt.optimizer.shared_memory import refuse_shared_memory

__all__ = ["add_group"]


def add_group(
    param_group: dict[str, Any],
    model: nn.Module | None,
    config: MaskConfig,
    updater: MaskUpdater,
    *,
    named: bool,
) -> list[SparseLayer]:
    """Add a param group to the inner optimizer, and its layers to the updater's list.

    The updater's layers whose weight is no longer in any param group, nor in the model, are
    forgotten. If a weight of the new group cannot be masked, nothing is added.

    Args:
        param_group: the group.
        model: the model, if the optimizer was made with one.
        config: the user's settings at construction.
        updater: the mask updater; its backend must have full-size parameters and state now.
        named: whether the present layers have names.

    Returns:
        The group's layers; perhaps none. Their masks are not applied yet.

    Raises:
        RuntimeError: if the model is needed but missing, because the optimizer was unpickled.
        TypeError: if a weight is of a kind that can't be masked.
        ValueError: if a density is wrong, if a weight has the name of a layer, or if the method
            takes no further layers.
    """
    inner = updater.backend.inner
    if model is None and named and not has_names(inner, None):
        raise RuntimeError(
            "this SparseOptimizer was unpickled without its model, which shows what can be sparse: "
            "make a new one with the model, and load the state dict."
        )
    inner.add_param_group(param_group)
    try:
        departed = departed_layers(updater.layers, inner.param_groups, model)
        known = {layer.name for layer in updater.layers if layer not in departed}
        layers = _layers_of_last(inner.param_groups, model, config, updater, known)
        check_keeps_zeros(layers, config, updater.method, stacklevel=4)
    except Exception:
        inner.param_groups.pop()
        raise
    forget_layers(departed, updater, model)
    progress = updater.progress
    usage = progress.usage.advanced(progress.steps, updater.layers)
    progress.usage = usage.joined_by(layers)
    _add_in_order(updater.layers, layers, model)
    return layers


def _layers_of_last(
    groups: list[dict[str, Any]],
    model: nn.Module | None,
    config: MaskConfig,
    updater: MaskUpdater,
    known: Collection[str],
) -> list[SparseLayer]:
    """Return the layers of the last of ``groups``, made by the same rules as all others.

    The new layers together have the density. None of them counts as the first layer, which
    ``"uniform"`` leaves dense.

    Args:
        groups: all param groups.
        model: the model, if the optimizer was made with one.
        config: the user's settings at construction.
        updater: the mask updater, with the method and the source of random masks.
        known: names of the present layers.
    """
    method = updater.method
    # A module that a selector named at construction may have left the model since.
    everything, overrides = weights_for(method, groups, model, config.sparse, must_match=False)
    added = set(groups[-1]["params"])
    weights = {name: weight for name, weight in everything.items() if weight in added}
    if not weights:
        return []
    refuse_shared_memory(weights, groups, model)
    if isinstance(method, RigLStruct):
        raise ValueError(
            f"method={method.name!r} found the model's channels at construction, and can't take "
            f"{next(iter(weights))!r} of the new param group: give the group density=False, or "
            "make the SparseOptimizer when the optimizer has all groups."
        )
    for name in weights:
        if name in known:
            raise ValueError(
                f"parameter {name!r} of the new param group has the name of a sparse layer that "
                "this optimizer has already: a weight that replaces another in the model needs a "
                "new SparseOptimizer."
            )
    selected = selected_by(config.sparse, model)
    note_what_stays_dense(groups[-1:], model, list(weights.values()), selected)
    densities = {name: overrides.get(name, config.density) for name in weights}
    generator = updater.progress.generator
    wanted = config.among(weights)
    return make_layers(weights, densities, wanted, method, generator, model, groups)


def _add_in_order(
    layers: list[SparseLayer], more: Sequence[SparseLayer], model: nn.Module | None
) -> None:
    """Add ``more`` to ``layers``; with a model, keep them in the model's order."""
    layers.extend(more)
    if model is not None:
        weights = [layer.weight for layer in layers]
        order = {name: place for place, name in enumerate(model_weights(model, weights).values())}
        layers.sort(key=lambda layer: order.get(layer.name, len(order)))
