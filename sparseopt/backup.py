"""Weights as they were before construction made some of them zero, until training starts.

Trainers differ in their order: some restore the model, make the optimizer, and then restore the
optimizer. The masks of the construction are then the wrong ones, and what they made zero has to
come back before the checkpoint's masks are applied.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sparseopt.layers import SparseLayer

__all__ = ["WeightBackup"]


class WeightBackup:
    """Copies of the layers' weights, each good for as long as nobody writes to the weight.

    Args:
        layers: the layers, before their masks are applied.
    """

    def __init__(self, layers: Sequence[SparseLayer]) -> None:
        self._copies = [
            (layer.weight, layer.weight.detach().clone()) for layer in layers if not layer.is_full
        ]
        self._versions: list[int] = []

    def note_versions(self) -> None:
        """Take the weights as they are now to be what masking, and nobody else, made of them."""
        self._versions = [weight._version for weight, _ in self._copies]

    def put_back(self) -> None:
        """Restore the weights that nobody has written to since, such as by loading a model."""
        with torch.no_grad():
            for (weight, copy), version in zip(self._copies, self._versions, strict=True):
                if weight._version == version:
                    weight.copy_(copy)
