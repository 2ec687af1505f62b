"""Finds the layer that masks a weight: the weight's gradient hook refers to the layer."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final

from torch import Tensor

from sparseopt.masks.layer import SparseLayer

__all__ = ["hooks_on", "layer_of", "mark_hook"]

#: The attribute of a gradient hook that refers to its layer, weakly.
LAYER: Final = "sparseopt_layer"


def mark_hook(hook: Callable[..., Any], layer: SparseLayer) -> None:
    """Note on a gradient hook which layer's mask it applies; the layer is held weakly."""
    setattr(hook, LAYER, weakref.ref(layer))


def hooks_on(weight: Tensor) -> Iterator[tuple[Callable[..., Any], SparseLayer]]:
    """Yield the hooks that mask the gradient of ``weight``, with their layers, if these live."""
    for hook in list((weight._post_accumulate_grad_hooks or {}).values()):
        reference = getattr(hook, LAYER, None)
        layer = None if reference is None else reference()
        if layer is not None:
            yield hook, layer


def layer_of(weight: Tensor) -> SparseLayer | None:
    """Return the layer that masks ``weight`` now, of whichever optimizer; of several the newest."""
    layers = [layer for _, layer in hooks_on(weight) if layer.weight is weight]
    return layers[-1] if layers else None
