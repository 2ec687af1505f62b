"""Masks that the user sets in the middle of training, or applies to another model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparseopt.distributed.dtensor import full_tensor, is_sharded, shard_like
from sparseopt.distributed.ranks import from_all_ranks, masks_of_rank_zero
from sparseopt.distributions import layer_named
from sparseopt.masks.drop_and_grow import Transition, plan_mask
from sparseopt.masks.indices import count_true, take
from sparseopt.masks.initial import check_mask, masks_by_layer
from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.norm_slices import described, left_zero
from sparseopt.methods.base import Method
from sparseopt.methods.rigl_struct import RigLStruct
from sparseopt.optimizer.mask_moves import make_transitions, movable, record_of
from sparseopt.optimizer.mask_updates import MaskUpdater
from sparseopt.optimizer.weight_backup import WeightBackup
from sparseopt.utils.wrappers import canonical_name

__all__ = ["mask_copy", "set_masks"]


@torch.no_grad()
def set_masks(updater: MaskUpdater, masks: Mapping[str, Tensor], backup: WeightBackup) -> None:
    """Set the masks that the user gives, between two steps, as an update does.

    Collective: all ranks get rank 0's masks, and raise rank 0's errors.

    Args:
        updater: the mask updater, with the layers.
        masks: the masks by layer.
        backup: keeps the weights that become zero before training starts.

    Raises:
        TypeError: if a mask is not a bool tensor.
        ValueError: if a name is not known or given twice, if a shape is wrong, if a mask has no
            live weight or not the structure of the method's masks, if it would leave a slice under
            weight norm zero, if a dense layer would become sparse or a sparse layer dense, if a
            sharded mask is not given on all ranks, or if the method drops entire channels.
    """
    method, layers = updater.method, {layer.name: layer for layer in updater.layers}
    if isinstance(method, RigLStruct):
        raise ValueError(
            f"method={method.name!r} drops entire channels, whose masks in several layers belong "
            "together, so masks can't be set layer by layer. Pass mask= at construction."
        )
    masks = _brought_together(masks, layers)
    agreed = masks_of_rank_zero(lambda: _checked(masks, layers, method))
    _require_layers(agreed, layers)
    for name, mask in agreed.items():
        _require_numbers_in_slices(layers[name], mask)
    planned = [
        (layers[name], _transition(layers[name], mask, updater)) for name, mask in agreed.items()
    ]
    moving = [(layer, change) for layer, change in planned if change.dropped or change.grown]
    updater.undo_preparation()
    progress = updater.progress
    progress.usage = progress.usage.advanced(progress.steps, updater.layers)
    backup.before_change([layer for layer, _ in moving])
    before = {layer: layer.live for layer, _ in moving}
    everything = updater.layers
    new = make_transitions(
        everything,
        moving,
        updater.backend,
        updater.state,
        # The next step may read gradients of dropped weights that are computed already.
        mask_gradients_of=() if updater.needs_dense_gradients else everything,
    )
    _adapt_targets(updater, before)
    progress.history.append(record_of(everything, progress.steps, 0.0, new=new))


@torch.no_grad()
def mask_copy(layers: Sequence[SparseLayer], model: nn.Module) -> None:
    """Set the same weights to zero in another model. If the model does not fit, nothing changes.

    Collective if the two models are sharded in different ways.

    Raises:
        ValueError: if the model has no parameter of a layer's name and shape.
    """
    parameters = {canonical_name(name): value for name, value in model.named_parameters()}
    pairs = []
    for layer in layers:
        parameter = parameters.get(layer.name)
        if parameter is None or parameter.shape != layer.weight.shape:
            raise ValueError(
                f"model={type(model).__name__}(...) has no parameter {layer.name!r} of shape "
                f"{tuple(layer.weight.shape)}."
            )
        pairs.append((layer, parameter))
    for layer, parameter in pairs:
        parameter.masked_fill_(~shard_like(layer.mask, parameter).to(parameter.device), 0)


def _brought_together(masks: Any, layers: Mapping[str, SparseLayer]) -> Any:
    """Return ``masks`` with every mask that is sharded on rank 0 as a full tensor.

    ``masks`` may have any type. Nothing is checked here that could fail on one rank alone, because
    the other ranks would then wait for ever.
    """
    items = masks.items() if isinstance(masks, Mapping) else ()
    sharded = [key for key, mask in items if isinstance(key, str) and is_sharded(mask)]
    keys = {layer_named(key, layers): key for key in sharded}
    mine = [
        (name, tuple(masks[keys[name]].shape), str(masks[keys[name]].placements))
        for name in layers
        if name in keys
    ]
    everyones = from_all_ranks(mine)
    wanted = everyones[0]
    for entry in wanted:
        if not all(entry in theirs for theirs in everyones):
            raise ValueError(
                f"masks[{entry[0]!r}] is sharded on rank 0, but on another rank, which has a part "
                "of it, it is missing or sharded differently: give the same sharded masks on all "
                "ranks, or the full mask on rank 0."
            )
    together = {keys[name]: full_tensor(masks[keys[name]]) for name, _, _ in wanted}
    return {**masks, **together} if together else masks


def _checked(
    masks: Mapping[str, Tensor], layers: Mapping[str, SparseLayer], method: Method
) -> dict[str, Tensor]:
    """Return ``masks`` by layer, in the order of the layers."""
    given = masks_by_layer("masks", masks, layers)
    checked = {
        name: check_mask(name, given[name], layer.weight, method.initial_mask)
        for name, layer in layers.items()
        if name in given
    }
    for name, mask in checked.items():
        _require_same_kind(layers[name], mask)
    return checked


def _require_same_kind(layer: SparseLayer, mask: Tensor) -> None:
    """Raise if a mask would make a sparse layer dense, or a dense layer sparse.

    The keys that a checkpoint has for a layer depend on whether it is dense, and must not change
    during training.
    """
    drops = count_true(mask) < layer.numel
    if drops and layer.is_dense:
        raise ValueError(
            f"mask[{layer.name!r}] drops weights of a layer that stays dense: make it sparse at "
            f"construction, init={{{layer.name!r}: density}} with a density below 1."
        )
    if not drops and not layer.is_full:
        raise ValueError(
            f"mask[{layer.name!r}] has every weight live, but the layer is sparse: pass a mask "
            "with at least one dropped weight, or make the layer dense at construction, "
            f"init={{{layer.name!r}: 1.0}}."
        )


def _require_layers(masks: Mapping[str, Tensor], layers: Mapping[str, SparseLayer]) -> None:
    """Raise if this rank has other layers than rank 0."""
    for name, mask in masks.items():
        if name not in layers or layers[name].weight.shape != mask.shape:
            raise ValueError(
                f"rank 0 has a mask of shape {tuple(mask.shape)} for layer {name!r}, but this rank "
                "has no such layer: masks can only be set where all ranks have the same layers."
            )


def _require_numbers_in_slices(layer: SparseLayer, mask: Tensor) -> None:
    """Raise if ``mask`` would leave only zeros in a slice that weight norm divides by its norm."""
    if layer.norm_dim is None:
        return
    wanted = mask.to(layer.weight.device).reshape(-1)
    zero: list[int] = left_zero(layer, wanted, wanted).nonzero().flatten().tolist()
    if zero:
        raise ValueError(
            f"mask[{layer.name!r}] leaves {described(zero, layer.norm_dim)} without a weight that "
            "is live now and not zero, but weight norm divides each slice by its norm, and weights "
            "that grow start at zero: keep one or more of the live weights of every slice."
        )


def _transition(layer: SparseLayer, mask: Tensor, updater: MaskUpdater) -> Transition:
    """Return the transition to a given mask: live weights outside it drop, new ones are zero."""
    wanted = mask.to(layer.weight.device).reshape(-1)
    kept = count_true(take(wanted, layer.positions()))
    return plan_mask(
        layer,
        drop=layer.live - kept,
        grow=count_true(wanted) - kept,
        survivors=wanted,
        mask=wanted,
        start=None,
        regrow=updater.method.regrow,
    )


def _adapt_targets(updater: MaskUpdater, before: Mapping[SparseLayer, int]) -> None:
    """Adapt the targets of layers to the live counts of their new masks.

    If live counts have fallen to their targets already, the new counts become the targets. If they
    still have to fall, a target falls by as much as the new count is below the target and below the
    earlier count, whichever is smaller. Some methods move live weights between layers, so that the
    count of a single layer may be far from its target. So the sums over all layers decide whether
    counts have fallen.

    Args:
        updater: the mask updater, with the layers and their new masks.
        before: the earlier live counts of layers whose masks changed.
    """
    changed = [layer for layer, live in before.items() if layer.live != live]
    if not changed:
        return
    pool = movable(updater.layers, updater.backend)
    live_before = sum(before.get(layer, layer.live) for layer in pool)
    has_fallen = live_before <= sum(layer.target for layer in pool)
    for layer in changed:
        if has_fallen:
            layer.target = layer.live
        else:
            layer.target -= max(0, min(before[layer], layer.target) - layer.live)
    excess = sum(layer.live - layer.target for layer in pool)
    if (has_fallen and excess > 0) or (updater.method.reaches_target_at_t_end and excess < 0):
        _settle(pool)


def _settle(layers: Sequence[SparseLayer]) -> None:
    """Set the targets to the live counts, with the same sum.

    A target of all weights would make a layer dense. So a full layer gets a target of one weight
    fewer, and other layers get the difference.
    """
    for layer in layers:
        layer.target = min(layer.live, layer.numel - 1)
    lacking = sum(layer.live - layer.target for layer in layers)
    for layer in layers:
        more = min(lacking, layer.numel - 1 - layer.target)
        layer.target += more
        lacking -= more
