"""Masks for models that are not trained themselves: averaged and target copies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from sparseopt.masks.layer import SparseLayer
from sparseopt.utils.wrappers import canonical_name

__all__ = ["mask_copy"]


def mask_copy(model: nn.Module, layers: Sequence[SparseLayer]) -> None:
    """Make the weights of ``model`` zero that are not live in ``layers``, matched by name.

    Raises:
        ValueError: if ``model`` has no parameter of a layer's name and shape; nothing changes then.
    """
    parameters = {canonical_name(name): value for name, value in model.named_parameters()}
    for layer in layers:
        parameter = parameters.get(layer.name)
        if parameter is None or parameter.shape != layer.weight.shape:
            raise ValueError(
                f"model={type(model).__name__}(...) has no parameter {layer.name!r} of shape "
                f"{tuple(layer.weight.shape)}."
            )
    with torch.no_grad():
        for layer in layers:
            parameter = parameters[layer.name]
            parameter.masked_fill_(~layer.mask.to(parameter.device), 0)
