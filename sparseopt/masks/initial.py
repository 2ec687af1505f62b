"""Which weights of each layer are live before the first step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from sparseopt.distributed.dtensor import full_tensor
from sparseopt.distributions import match_name
from sparseopt.masks.indices import count_true
from sparseopt.masks.norm_slices import (
    check_counts,
    described,
    slices_without,
    with_best_first,
)
from sparseopt.utils.random import uniform
from sparseopt.utils.validation import unknown_name

__all__ = ["MASKS", "check_mask", "initial_masks", "masks_by_layer"]

MASKS: Final = ("random", "magnitude", "nonzero")


def initial_masks(
    weights: Mapping[str, Tensor],
    live: Mapping[str, int],
    mask: str | Mapping[str, Tensor],
    generator: torch.Generator,
    select: Callable[[Tensor, int], Tensor],
    norm_dims: Mapping[str, int],
) -> dict[str, Tensor]:
    """Return a bool mask of the weight's shape for each layer.

    Under weight norm every slice has a live weight: a slice that would have none keeps its best.

    Args:
        weights: the layers' weights by name, in order.
        live: how many weights of each layer will be live. Under ``"nonzero"``, and for layers that
            a mapping names, the masks themselves decide.
        mask: ``"random"``; ``"magnitude"``, the largest of each layer; ``"nonzero"``, the weights
            that are not zero now; or a mapping from layer name to bool tensor, in which case layers
            that it doesn't name are random.
        generator: the random source, on the CPU.
        select: takes scores and a count, and returns the mask of the highest scores, of their
            shape. Given masks must be masks that it could return.
        norm_dims: for layers under weight norm, the dimension along which it takes slices.

    Raises:
        TypeError: if a given mask is not a bool tensor, or ``mask`` is of no usable type.
        ValueError: if a name is not known or given twice, or if a mask has the wrong shape, has no
            live weight, could not come from ``select``, or has no live weight in a slice of weight
            norm.
    """
    given: dict[str, Tensor] = {}
    if isinstance(mask, Mapping):
        given = masks_by_layer("mask", mask, weights)
    elif not isinstance(mask, str):
        raise TypeError(
            f"mask={mask!r} must be one of {MASKS} or a mapping from layer name to bool tensor."
        )
    elif mask not in MASKS:
        raise unknown_name("mask", mask, MASKS)
    masks = {}
    for name, weight in weights.items():
        if name in given:
            chosen = check_mask(name, given[name], weight, select)
        elif mask == "nonzero":
            nonzero = full_tensor(weight.detach()) != 0
            _refuse_all_zero(name, nonzero)
            chosen = check_mask(name, nonzero, weight, select)
        elif live[name] == weight.numel():
            chosen = torch.ones(weight.shape, dtype=torch.bool, device="cpu")
        else:
            if mask == "magnitude":
                scores = full_tensor(weight.detach()).abs()
            else:
                scores = uniform((weight.numel(),), generator).view(weight.shape)
            if name in norm_dims:
                check_counts(name, tuple(weight.shape), norm_dims[name], live[name])
                scores = with_best_first(scores, full_tensor(weight.detach()), norm_dims[name])
            chosen = select(scores, live[name])
        if name in norm_dims:
            _check_slices(name, chosen, norm_dims[name])
        masks[name] = chosen
    return masks


def masks_by_layer(
    argument: str,
    masks: Mapping[str, Tensor],
    layers: Mapping[str, object],
    spelling: Callable[[str], str] = str,
) -> dict[str, Tensor]:
    """Return the user's masks by the names of the layers; the masks are not checked.

    Args:
        argument: the name of the argument, for messages.
        masks: the masks; a key may leave out ``.weight`` and have the prefixes of wrappers.
        layers: the layers by name.
        spelling: a function that returns the usual spelling of a key.

    Raises:
        ValueError: if a key names no layer, or if two keys name the same layer.
    """
    found: dict[str, Tensor] = {}
    for key, mask in masks.items():
        name = match_name(argument, spelling(key), layers)
        if name in found:
            raise ValueError(
                f"{argument} has two masks for layer {name!r}, because {key!r} names this layer "
                "too: give one of them."
            )
        found[name] = mask
    return found


def _check_slices(name: str, mask: Tensor, dim: int) -> None:
    if empty := slices_without(mask, dim):
        raise ValueError(
            f"mask[{name!r}] has no live weight in {described(empty, dim)}, but weight norm "
            "divides each slice by its norm, and that would be 0 / 0: every slice needs a live "
            "weight."
        )


def _refuse_all_zero(name: str, nonzero: Tensor) -> None:
    if not nonzero.any():
        raise ValueError(
            f"mask='nonzero': every weight of layer {name!r} is zero, as LoRA's B is at first. "
            "Give its param group density=False to keep it dense, or pass masks instead of "
            f"'nonzero', mask={{name: weight != 0, ...}}, with live weights for {name!r}."
        )


def check_mask(
    name: str, mask: object, weight: Tensor, select: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """Return the mask given for the layer ``name``, gathered if it is sharded.

    Collective if the mask is sharded.

    Raises:
        TypeError: if the mask is not a bool tensor.
        ValueError: if its shape is not the weight's, if it has no live weight, or if it is not a
            mask that ``select`` could return.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask[{name!r}] is {kind}, but must be a bool tensor.")
    if mask.shape != weight.shape:
        raise ValueError(
            f"mask[{name!r}] has shape {tuple(mask.shape)}, but must have the weight's shape "
            f"{tuple(weight.shape)}."
        )
    mask = full_tensor(mask)
    if not mask.any():
        raise ValueError(f"mask[{name!r}] has no live weight, but every layer needs at least one.")
    live = count_true(mask)
    if live < mask.numel() and not torch.equal(select(mask.float(), live), mask):
        raise ValueError(
            f"mask[{name!r}] has {live} live weights of {mask.numel()}, but not at positions that "
            "the method allows: the method's masks have a structure."
        )
    return mask
