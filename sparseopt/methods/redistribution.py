"""Redistribution: what all layers drop together is shared out among them to grow."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparseopt.masks.layer import SparseLayer
from sparseopt.methods.base import DropGrow
from sparseopt.methods.update import Move, Update

__all__ = ["Redistributing", "share_out"]


@dataclass(frozen=True)
class Redistributing(DropGrow):
    """Drops a fraction of each layer, and grows as many in all, more where a layer matters more.

    Layers have the parts of the total that :meth:`importance` gives them, so their densities move
    while the density of the whole is exact. A layer that is full passes the rest on to the others,
    and none loses its last live weight. If no layer has any importance, counts stay.

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

    @abstractmethod
    def importance(self, layer: SparseLayer, update: Update) -> Tensor:
        """Return a tensor of one number, at least 0, for a layer before anything drops."""

    def moves(self, layers: Sequence[SparseLayer], update: Update) -> list[Move]:
        """Drop in each layer alone; grow as many in all, shared out by importance."""
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
    """Split a whole number in proportion to ``shares``, with no part above its ``room``.

    What does not fit goes to the others, in proportion again; to those with a share of 0 only if
    all others are full. Parts are rounded by largest remainder, ties to the earlier one, so that
    they add up exactly.

    Args:
        total: what to split.
        shares: how much each is to have; need not add up to 1.
        room: how much each can have.

    Returns:
        The parts, which add up to ``total``.

    Raises:
        ValueError: if ``total`` is negative or exceeds the room of all together.

    Example:
        >>> share_out(10, [3.0, 1.0, 1.0], [4, 9, 9])
        [4, 3, 3]
    """
    if not 0 <= total <= sum(room):
        raise ValueError(f"total={total} must be between 0 and the room of all, {sum(room)}.")
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
    whole = sum(shares[i] for i in takers)
    if whole > 0.0:
        return {i: left * shares[i] / whole for i in takers}
    space = sum(room[i] for i in takers)
    return {i: left * room[i] / space if space else 0.0 for i in takers}
