"""The three ways to say which weights are live: an optimizer, masks by name, or "nonzero"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from sparseopt.distributions import match_name
from sparseopt.optimizer.sparse_optimizer import SparseOptimizer
from sparseopt.utils.names import written_name
from sparseopt.utils.wrappers import canonical_name

__all__ = ["Masks", "masks_by_name"]

#: An optimizer, bool tensors by name of the weight or of its module, or ``"nonzero"``.
Masks = SparseOptimizer | Mapping[str, Tensor] | Literal["nonzero"]


def masks_by_name(model: nn.Module, masks: Masks) -> dict[str, Tensor]:
    """Return the masks of weights that have dropped ones, by canonical name of the parameter.

    Args:
        model: the model.
        masks: an optimizer, masks by name, or ``"nonzero"``: weights of two or more dimensions
            that have zeros are live where they are not zero.

    Raises:
        TypeError: if it is none of these, or a mask is no bool tensor.
        ValueError: if a name is not known, or a mask has another shape than its weight.
    """
    weights = {canonical_name(name): one.detach() for name, one in model.named_parameters()}
    if isinstance(masks, SparseOptimizer):
        masks.materialize()
        found = _of_weights(masks.masks, weights)
    elif isinstance(masks, Mapping):
        found = {
            match_name("masks", key if key in weights else written_name(key), weights): mask
            for key, mask in masks.items()
        }
    elif masks == "nonzero":
        found = {name: weight != 0 for name, weight in weights.items() if weight.dim() > 1}
    else:
        raise TypeError(
            f"masks={masks!r} must be a SparseOptimizer, a mapping from name to bool tensor, or "
            "'nonzero'."
        )
    return {name: mask for name, mask in found.items() if not _is_full(name, mask, weights[name])}


def _of_weights(masks: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an optimizer's masks by the weight that is computed from each masked parameter.

    Of a magnitude or another parameter that has not the shape of the weight there is none.
    """
    found = {}
    for name, mask in masks.items():
        written = name if name in weights else written_name(name)
        if written in weights and weights[written].shape == mask.shape:
            found[written] = mask
    return found


def _is_full(name: str, mask: object, weight: Tensor) -> bool:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"masks[{name!r}]={mask!r} must be a bool tensor.")
    if mask.shape != weight.shape:
        raise ValueError(
            f"masks[{name!r}] has the shape {tuple(mask.shape)}, and the weight "
            f"{tuple(weight.shape)}."
        )
    return bool(mask.all())
