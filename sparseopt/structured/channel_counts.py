"""How many channels of each group are live."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from sparseopt.structured.channel_groups import ChannelGroup

__all__ = ["channel_counts", "share_count"]

#: Halvings of the interval that a factor lies in: to the last bit of a float.
HALVINGS: Final = 60


def share_count(share: float, channels: int) -> int:
    """Return how many of ``channels`` a share of them is, at least one and at most all."""
    return min(channels, max(1, int(share * channels + 0.5)))


def channel_counts(
    groups: Sequence[ChannelGroup],
    shares: Sequence[float],
    shapes: Mapping[str, Sequence[int]],
    density: float,
) -> list[int]:
    """Return how many channels of each group are live, for a density of all weights together.

    All shares are multiplied by one factor, the largest with which the density is not exceeded. A
    group keeps one channel at least, and one whose share is 1 keeps all.

    Args:
        groups: the groups.
        shares: for each of them the share of channels that it is to have, in (0, 1].
        shapes: the shapes of the weights that count, by name.
        density: which share of these weights is live at most.

    Raises:
        ValueError: if one channel a group is too much, or no group may lose any.
    """
    total = sum(math.prod(shape) for shape in shapes.values())
    budget = round(density * total)
    least = _live_weights(groups, _counts(groups, shares, 0.0), shapes)
    if least == total and budget < total:
        raise ValueError(
            f"density={density} can't be had: under this init no group of channels may lose any, "
            "as those of the first layer under 'uniform' don't, and those that share theirs."
        )
    if least > budget:
        raise ValueError(
            f"density={density} is too low for whole channels: with one in each group "
            f"that may lose some, {least / total:.4g} of the convolutions' weights are live."
        )
    low, high = 0.0, 1.0 / min(shares)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        fits = _live_weights(groups, _counts(groups, shares, middle), shapes) <= budget
        low, high = (middle, high) if fits else (low, middle)
    return _counts(groups, shares, low)


def _counts(groups: Sequence[ChannelGroup], shares: Sequence[float], factor: float) -> list[int]:
    return [
        share_count(share if share == 1.0 else factor * share, group.channels)
        for group, share in zip(groups, shares, strict=True)
    ]


def _live_weights(
    groups: Sequence[ChannelGroup], counts: Sequence[int], shapes: Mapping[str, Sequence[int]]
) -> int:
    """Return how many weights of all convolutions are live with these counts of channels."""
    sizes = {name: list(shape) for name, shape in shapes.items()}
    for group, count in zip(groups, counts, strict=True):
        for place in group.slices:
            if place.name in sizes:
                dropped = (group.channels - count) * place.index.shape[1]
                sizes[place.name][place.dim] -= dropped
    return sum(math.prod(size) for size in sizes.values())
