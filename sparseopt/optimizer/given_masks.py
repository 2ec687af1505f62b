"""Masks that the user sets in the middle of training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sparseopt.distributed.ranks import agree_on_masks
from sparseopt.distributions import match_name
from sparseopt.masks.indices import count_true, take
from sparseopt.masks.initial import check_mask
from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.transition import Transition, plan_mask
from sparseopt.methods.rigl_struct import RigLStruct
from sparseopt.optimizer.mask_updates import MaskUpdater, make_transitions, record_of

__all__ = ["set_masks"]


@torch.no_grad()
def set_masks(updater: MaskUpdater, masks: Mapping[str, Tensor]) -> None:
    """Give layers of ``updater`` the masks that the user wants, as an update between two steps.

    Raises:
        TypeError: if a mask is not a bool tensor.
        ValueError: if a name is not known, a shape is wrong, a mask has no live weight or not the
            structure of the method's masks, or the method drops whole channels.
    """
    method, layers = updater.method, {layer.name: layer for layer in updater.layers}
    if isinstance(method, RigLStruct):
        raise ValueError(
            f"method={method.name!r} drops whole channels, whose masks belong together: masks "
            "can't be set one by one. Pass mask= at construction."
        )
    given = {match_name("masks", key, layers): mask for key, mask in masks.items()}
    checked = {
        name: check_mask(name, mask, layers[name].weight, method.initial_mask)
        for name, mask in given.items()
    }
    planned = [
        (layers[name], _transition(layers[name], mask, updater))
        for name, mask in agree_on_masks(checked).items()
    ]
    goals = {layer.name: _goal(layer, change) for layer, change in planned}
    updater.undo_preparation()
    progress = updater.progress
    progress.usage = progress.usage.advanced(progress.steps, updater.layers)
    moving = [(layer, change) for layer, change in planned if change.dropped or change.grown]
    everything = updater.layers
    new = make_transitions(
        everything, moving, updater.backend, updater.state, mask_gradients_of=everything
    )
    for name, goal in goals.items():
        layers[name].target = goal
    progress.history.append(record_of(everything, progress.steps, 0.0, new=new))


def _transition(layer: SparseLayer, mask: Tensor, updater: MaskUpdater) -> Transition:
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


def _goal(layer: SparseLayer, change: Transition) -> int:
    """Return the live count that training is to end with: that of the mask, or what it falls to."""
    live = change.positions.numel()
    return live if layer.live == layer.target else min(live, layer.target)
