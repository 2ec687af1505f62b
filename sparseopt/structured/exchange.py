"""From channels that change to masks that change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from sparseopt.structured.channel_groups import ChannelGroup
from sparseopt.structured.channel_masks import live_along, mask_from

__all__ = ["changed_masks"]


def changed_masks(
    masks: Mapping[str, Tensor], changes: Sequence[tuple[ChannelGroup, Tensor]]
) -> dict[str, Tensor]:
    """Return what masks become when other channels are live.

    Args:
        masks: the masks of whole channels that there are, by name.
        changes: groups of which other channels are live, and which, bool, ``(channels,)``.

    Returns:
        The masks that these groups have a part in, by name, on their devices.
    """
    along: dict[str, dict[int, Tensor]] = {}
    for group, live in changes:
        for place in group.slices:
            if place.name not in masks:
                continue
            mask = masks[place.name]
            dims = along.setdefault(
                place.name, {dim: live_along(mask, dim) for dim in range(mask.dim())}
            )
            dims[place.dim][place.index] = live.unsqueeze(1).expand(place.index.shape)
    return {
        name: mask_from(masks[name].shape, dims).to(masks[name].device)
        for name, dims in along.items()
    }
