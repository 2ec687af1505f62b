"""Which weights are live, from an optimizer, from masks by name, or from "nonzero"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from sparseopt.distributed.dtensor import full_tensor
from sparseopt.masks.initial import masks_by_layer
from sparseopt.optimizer.sparse_optimizer import SparseOptimizer
from sparseopt.utils.names import written_name
from sparseopt.utils.wrappers import canonical_name

__all__ = ["Masks", "masks_by_name"]

#: An optimizer, bool tensors by name of the weight or of its module, or ``"nonzero"``.
Masks = SparseOptimizer | Mapping[str, Tensor] | Literal["nonzero"]


def masks_by_name(model: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """Return the masks that drop any weight, by canonical name of the parameter.

    All masks are full, also those of sharded weights. Collective if there are sharded weights.

    Args:
        model: the model.
        masks: an optimizer, masks by name, or ``"nonzero"``. With ``"nonzero"``, in tensors of two
            or more dimensions the nonzero weights are live.

    Raises:
        TypeError: if ``masks`` has another type, or if a mask is not a bool tensor.
        ValueError: if the model has no weight of a name, if two names belong to one weight, or if
            a mask and its weight have different shapes.
    """
    weights = {canonical_name(name): one.detach() for name, one in model.named_parameters()}
    if isinstance(masks, SparseOptimizer):
        masks.materialize()
        found = _of_weights(masks.masks, weights)
    elif isinstance(masks, Mapping):
        found = masks_by_layer(
            "masks", masks, weights, lambda key: key if key in weights else written_name(key)
        )
    elif masks == "nonzero":
        found = {
            name: full_tensor(weight) != 0 for name, weight in weights.items() if weight.dim() > 1
        }
    else:
        raise TypeError(
            f"masks={masks!r} must be a SparseOptimizer, a mapping from name to bool tensor, or "
            "'nonzero'."
        )
    full = {name: full_tensor(mask) for name, mask in found.items()}
    return {name: mask for name, mask in full.items() if not _is_full(name, mask, weights[name])}


def _of_weights(masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an optimizer's masks by name of the weight that each masked parameter belongs to.

    The parameter may be the weight itself, or one that the weight is computed from. In the second
    case, parameters of another shape than the weight, such as magnitudes, have no mask here.

    Raises:
        ValueError: if the model lacks a weight.
    """
    found = {}
    for name, mask in masks.items():
        is_weight = name in weights
        written = name if is_weight else written_name(name)
        if written not in weights:
            raise ValueError(
                f"the model has no weight {name!r}, for which the optimizer has a mask: pass the "
                "model that the optimizer was made with, or masks= by the names in this model."
            )
        if is_weight or weights[written].shape == mask.shape:
            found[written] = mask
    return found


def _is_full(name: str, mask: object, weight: Tensor) -> bool:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"masks[{name!r}]={mask!r} must be a bool tensor.")
    if mask.shape != weight.shape:
        raise ValueError(
            f"masks[{name!r}] has the shape {tuple(mask.shape)}, but the weight has the shape "
            f"{tuple(weight.shape)}."
        )
    return bool(mask.all())
