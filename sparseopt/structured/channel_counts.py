"""How many channels of each group are live."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from sparseopt.structured.channel_groups import ChannelGroup

__all__ = ["channel_counts", "share_count"]

#: Steps of the bisection for a factor: enough for the last bit of a float.
HALVINGS: Final = 60


def share_count(share: float, channels: int) -> int:
    """Return ``share`` times ``channels``, rounded, at least 1 and at most ``channels``."""
    return min(channels, max(1, int(share * channels + 0.5)))


def channel_counts(
    groups: Sequence[ChannelGroup],
    shares: Sequence[float],
    shapes: Mapping[str, Sequence[int]],
    density: float,
) -> list[int]:
    """Return how many channels of each group are live, for a density of all weights together.

    All shares are multiplied by one factor, the largest that does not exceed the density. A group
    keeps at least one channel, and a group whose share is 1 keeps all.

    Args:
        groups: the groups.
        shares: the share of live channels wanted for each group, in (0, 1].
        shapes: the shapes of the weights that count, by name.
        density: the largest share of these weights that may be live.

    Raises:
        ValueError: if one channel a group exceeds the density, or if no group may lose channels.
    """
    total = sum(math.prod(shape) for shape in shapes.values())
    budget = round(density * total)
    least = _live_weights(groups, _counts(groups, shares, 0.0), shapes)
    if least == total and budget < total:
        raise ValueError(
            f"density={density} can't be met: under this init no group may lose channels. Under "
            "'uniform', for example, the first layer and all layers that share its channels keep "
            "all of them. Pass another init=."
        )
    if least > budget:
        raise ValueError(
            f"density={density} is too low for entire channels: with one channel left in each "
            f"group that may lose channels, {least / total:.4g} of the weights are still live."
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
    """Return how many of the weights that count are live with these counts of channels."""
    sizes = {name: list(shape) for name, shape in shapes.items()}
    for group, count in zip(groups, counts, strict=True):
        for place in group.slices:
            if place.name in sizes:
                dropped = (group.channels - count) * place.index.shape[1]
                sizes[place.name][place.dim] -= dropped
    return sum(math.prod(size) for size in sizes.values())
