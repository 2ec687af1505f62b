"""Redistribution: layers grow as many weights as they drop in total, divided by importance."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparseopt.masks.layer import SparseLayer
from sparseopt.methods.base import DropGrow
from sparseopt.methods.update import Move, Update

__all__ = ["Redistributing", "share_out"]


@dataclass(frozen=True)
class Redistributing(DropGrow):
    """Drops a fraction of each layer, and grows the same total, in proportion to importance.

    Each layer grows a part of the total in proportion to its :meth:`importance`. So the densities
    of layers change, while the density of all layers together stays exact. If a layer becomes full,
    the rest of its part goes to the other layers. No layer loses its last live weight. If the
    importance of all layers is 0, live counts stay the same.

    Example:
        >>> from dataclasses import dataclass
        >>> from sparseopt import Redistributing
        >>> @dataclass(frozen=True)
        ... class ToTheLargest(Redistributing):
        ...     name = "to-the-largest"
        ...     def importance(self, layer, update):
        ...         return layer.gather(layer.weight).abs().mean()
        ...     def grow_scores(self, layer, update):
        ...         return update.random_scores(layer)
        >>> ToTheLargest(regrow="never")
        ToTheLargest(regrow='never')

    Reference: Dettmers & Zettlemoyer 2019, "Sparse Networks from Scratch", section 3.
    """

    keeps_live_counts: ClassVar[bool] = False

    @abstractmethod
    def importance(self, layer: SparseLayer, update: Update) -> Tensor:
        """Return a layer's importance before the update: a tensor of one number, at least 0."""

    def moves(self, layers: Sequence[SparseLayer], update: Update) -> list[Move]:
        """Drop a fraction of each layer; grow as many in total, in proportion to importance."""
        drops = [min(self._move(layer, update.fraction).drop, layer.live - 1) for layer in layers]
        room = [
            layer.numel - layer.live + (0 if self.regrow == "never" else drop)
            for layer, drop in zip(layers, drops, strict=True)
        ]
        shares = self._shares(layers, update)
        grows = share_out(sum(drops), shares, room) if any(shares) else drops
        return [Move(drop, grow) for drop, grow in zip(drops, grows, strict=True)]

    def _shares(self, layers: Sequence[SparseLayer], update: Update) -> list[float]:
        device = layers[0].weight.device
        numbers = [self.importance(layer, update).float().to(device) for layer in layers]
        shares: list[float] = torch.stack(numbers).tolist()
        return shares


def share_out(total: int, shares: Sequence[float], room: Sequence[int]) -> list[int]:
    """Split an integer in proportion to ``shares``, with no part above its ``room``.

    The excess of a part above its room is split among the other parts, again in proportion. Parts
    with a share of 0 get something only if all others are full. Parts are rounded by largest
    remainder, so that they add up exactly; ties go to the earlier part.

    Args:
        total: the number to split.
        shares: the share of each part; they need not add up to 1.
        room: the largest value of each part.

    Returns:
        The parts, which add up to ``total``.

    Raises:
        ValueError: if ``total`` is negative or exceeds the sum of ``room``.

    Example:
        >>> share_out(10, [3.0, 1.0, 1.0], [4, 9, 9])
        [4, 3, 3]
    """
    if not 0 <= total <= sum(room):
        raise ValueError(f"total={total} must be between 0 and sum(room), {sum(room)}.")
    parts = [0] * len(room)
    left = total
    takers = list(range(len(room)))
    while True:
        quotas = _quotas(left, takers, shares, room)
        full = [i for i in takers if quotas[i] >= room[i]]
        if not full:
            break
        for i in full:
            parts[i] = room[i]
            left -= room[i]
            takers.remove(i)
    for i in takers:
        parts[i] = int(quotas[i])
    by_remainder = sorted(takers, key=lambda i: parts[i] - quotas[i])
    for i in by_remainder[: left - sum(parts[i] for i in takers)]:
        parts[i] += 1
    return parts


def _quotas(
    left: int, takers: Sequence[int], shares: Sequence[float], room: Sequence[int]
) -> dict[int, float]:
    sum_of_shares = sum(shares[i] for i in takers)
    if sum_of_shares > 0.0:
        return {i: left * shares[i] / sum_of_shares for i in takers}
    space = sum(room[i] for i in takers)
    return {i: left * room[i] / space if space else 0.0 for i in takers}
