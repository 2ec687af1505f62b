"""The hooks that mask gradients during ``backward()``, except where a method needs them dense."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from sparseopt.masks.layer import SparseLayer

__all__ = ["GradientGate", "mask_gradient_of", "masked_by_another", "revive_hooks"]

#: Under this name a hook refers to its layer.
LAYER: Final = "sparseopt_layer"


@dataclass
class GradientGate:
    """Whether gradients are left dense now; one for all hooks of an optimizer."""

    dense: bool = False


class _MaskGradient:
    """Masks a weight's gradient when ``backward()`` has accumulated it.

    It refers weakly to the layer, which refers to the weight, which holds this hook.
    """

    def __init__(self, layer: SparseLayer, gate: GradientGate) -> None:
        self._layer = weakref.ref(layer)
        self._gate = gate

    def __call__(self, weight: Tensor) -> None:
        layer = self._layer()
        gradient = weight.grad
        if layer is None or gradient is None or layer.is_full:
            return
        if gradient.layout != torch.strided:
            raise TypeError(
                f"the gradient of {layer.name!r} has layout {gradient.layout}: a layer with sparse "
                "gradients (Embedding(sparse=True)) can only be kept dense, with density=False."
            )
        if self._gate.dense:
            return
        layer.follow_weight()
        layer.mask_(gradient)


def mask_gradient_of(layer: SparseLayer, gate: GradientGate) -> RemovableHandle:
    """Register the hook on a layer's weight; return the handle that removes it.

    ``backward()`` in a compiled training step calls it as it is: traced, it would be compiled for
    every mask.
    """
    hook = torch.compiler.disable(_MaskGradient(layer, gate))  # type: ignore[no-untyped-call]
    setattr(hook, LAYER, weakref.ref(layer))
    weight = layer.weight
    trains = weight.requires_grad
    # A weight that is frozen now takes no hook, and may be trained again.
    weight.requires_grad_(True)
    handle: RemovableHandle = weight.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
    weight.requires_grad_(trains)
    return handle


def revive_hooks(weight: Tensor) -> None:
    """Have hooks called again that a weight has kept by name only, when its tensor was swapped."""
    weight._post_accumulate_grad_hooks = weight._post_accumulate_grad_hooks


def masked_by_another(layer: SparseLayer) -> bool:
    """Whether another optimizer's layer masks the gradient of this one's weight too."""
    hooks = layer.weight._post_accumulate_grad_hooks or {}
    owners = [getattr(hook, LAYER, None) for hook in hooks.values()]
    return any(owner is not None and owner() not in (None, layer) for owner in owners)
