"""Copies of weights from before masks set some of them to zero, kept until training starts.

Some trainers restore the model, construct the optimizer, and then restore the optimizer. Then the
masks of the construction are wrong. The weights that they set to zero have to be restored before
the masks of the checkpoint are applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseopt.distributed.dtensor import local, shard_like
from sparseopt.masks.layer import SparseLayer

__all__ = ["WeightBackup"]


@dataclass
class _Copy:
    """A weight before its masks were applied.

    ``unscathed`` is true where no earlier mask of the layer dropped the weight: bool, of the
    weight's shape, or ``None`` if there was no earlier mask.
    """

    layer: SparseLayer
    values: Tensor
    unscathed: Tensor | None = None

    def placed(self) -> Tensor:
        """Return the values on the device, in the dtype and in the sharding of the weight."""
        # The model may have been moved, or cast to another precision, in the meantime.
        weight = self.layer.weight
        return shard_like(self.values.to(weight.device, weight.dtype), weight)

    def is_good(self) -> bool:
        """Whether only masks have changed the weight since it was copied."""
        weight = self.layer.weight
        masked = self.placed().clone()
        self.layer._mask_(masked)
        part = local(masked)
        if self.unscathed is not None:
            part.masked_fill_(~local(shard_like(self.unscathed.to(weight.device), weight)), 0)
        return torch.equal(part, local(weight.detach()))


class WeightBackup:
    """Copies of the layers' weights. A copy is valid until other code writes to the weight.

    Args:
        layers: the layers, before their masks are applied.
    """

    def __init__(self, layers: Sequence[SparseLayer]) -> None:
        self._is_discarded = False
        self._copies: list[_Copy] = []
        self.add(layers)

    def add(self, layers: Sequence[SparseLayer]) -> None:
        """Copy more weights, before their masks are applied, unless training has begun."""
        if not self._is_discarded:
            self._copies += [_copy(layer) for layer in layers if not layer.is_full]

    @torch.no_grad()
    def before_change(self, layers: Sequence[SparseLayer]) -> None:
        """Update the copies before new masks of ``layers`` are applied, unless training has begun.

        A weight that other code has changed is copied again.
        """
        if self._is_discarded:
            return
        held = {copy.layer: copy for copy in self._copies if copy.is_good()}
        for layer in layers:
            copy = held.get(layer)
            if copy is None:
                copy = held[layer] = _copy(layer)
            mask = layer.mask
            copy.unscathed = (
                mask.clone()
                if copy.unscathed is None
                else mask & shard_like(copy.unscathed.to(mask.device), layer.weight)
            )
        others = [copy for copy in self._copies if copy.layer not in held]
        self._copies = [*held.values(), *others]

    @torch.no_grad()
    def put_back(self) -> None:
        """Restore the weights that only masks have changed.

        The next call restores the values that the weights have after this call, whether this call
        restored them or other code loaded them.
        """
        for copy in self._copies:
            if copy.is_good():
                copy.layer.weight.copy_(copy.placed())
        self._copies = [_copy(copy.layer) for copy in self._copies]

    def discard(self) -> None:
        """Free the copies, because training starts."""
        self._is_discarded = True
        self._copies.clear()


def _copy(layer: SparseLayer) -> _Copy:
    return _Copy(layer, layer.weight.detach().clone())
