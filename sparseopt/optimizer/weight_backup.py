"""Weights as they were before construction made some of them zero, until training starts.

Trainers differ in their order: some restore the model, make the optimizer, and then restore the
optimizer. The masks of the construction are then the wrong ones, and what they made zero has to
come back before the checkpoint's masks are applied.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparseopt.distributed.dtensor import local, shard_like
from sparseopt.masks.layer import SparseLayer

__all__ = ["WeightBackup"]


class WeightBackup:
    """Copies of the layers' weights, each good for as long as nobody writes to the weight.

    Args:
        layers: the layers, before their masks are applied.
    """

    def __init__(self, layers: Sequence[SparseLayer]) -> None:
        self._is_discarded = False
        self._copies: list[tuple[SparseLayer, Tensor]] = []
        self.add(layers)

    def add(self, layers: Sequence[SparseLayer]) -> None:
        """Copy more weights, before their masks are applied, unless training began."""
        if not self._is_discarded:
            self._copies += [
                (layer, layer.weight.detach().clone()) for layer in layers if not layer.is_full
            ]

    @torch.no_grad()
    def put_back(self) -> None:
        """Restore the weights that are still what their masks, and nobody else, made of them.

        What the weights are then, restored or loaded meanwhile, is what is put back next time.
        """
        for layer, copy in self._copies:
            # The model may have been moved, or brought into another precision, since.
            copy = copy.to(layer.weight.device, layer.weight.dtype)
            masked = shard_like(copy, layer.weight).clone()
            layer.mask_(masked)
            if torch.equal(local(masked), local(layer.weight.detach())):
                layer.weight.copy_(shard_like(copy, layer.weight))
        self._copies = [(layer, layer.weight.detach().clone()) for layer, _ in self._copies]

    def discard(self) -> None:
        """Free the copies: training starts."""
        self._is_discarded = True
        self._copies.clear()
