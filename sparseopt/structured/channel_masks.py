"""The parts of weights and vectors that a channel owns, and the masks of live channels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from sparseopt.distributed.dtensor import is_sharded
from sparseopt.structured.channel_groups import MAKERS, ChannelGroup, ChannelSlice
from sparseopt.utils.wrappers import canonical_name

__all__ = [
    "WEIGHTS",
    "Part",
    "canonical_groups",
    "changed_masks",
    "live_along",
    "live_channels",
    "mask_from",
    "parts_of",
    "refuse_sharded",
]

#: Roles of weights that every channel needs: weights that produce it, and weights that consume it.
WEIGHTS: Final = (*MAKERS, "consumer")


@dataclass(frozen=True)
class Part:
    """The part of one tensor that the channels of one group own.

    Attributes:
        tensor: a parameter, its gradient or its mask.
        place: the positions of each channel in the tensor, and their role.
    """

    tensor: Tensor
    place: ChannelSlice

    def magnitudes(self) -> Tensor:
        """Sum the magnitudes of each channel's entries: ``(channels,)``, on the CPU.

        The sum is in double precision, so that the order of summation does not decide which channel
        is larger.
        """
        dim = self.place.dim
        values = self.tensor.detach().double().abs().movedim(dim, 0)
        along = values.reshape(len(values), -1).sum(1)
        return along.cpu()[self.place.index].sum(1)


def canonical_groups(groups: Iterable[ChannelGroup]) -> tuple[ChannelGroup, ...]:
    """Return groups with the names of layers: without the parts that wrappers add."""
    return tuple(
        replace(group, slices=tuple(_canonical(place) for place in group.slices))
        for group in groups
    )


def parts_of(group: ChannelGroup, tensors: Mapping[str, Tensor], *roles: str) -> list[Part]:
    """Return the parts that a group owns in ``tensors``.

    Args:
        group: the group.
        tensors: the tensors, by name; parts of tensors that are missing here are left out.
        roles: only parts of these roles; by default all.
    """
    places = group.slices_of(*roles) if roles else group.slices
    return [Part(tensors[place.name], place) for place in places if place.name in tensors]


def live_along(mask: Tensor, dim: int) -> Tensor:
    """Return which positions along ``dim`` have live weights: bool, ``(size,)``, on the CPU."""
    return mask.movedim(dim, 0).reshape(mask.shape[dim], -1).any(1).cpu()


def live_channels(group: ChannelGroup, masks: Mapping[str, Tensor]) -> Tensor:
    """Return which channels of a group are live: bool, ``(channels,)``, on the CPU.

    Args:
        group: the group.
        masks: masks by name, including the mask of the first weight that produces the channels.

    Example:
        >>> from sparseopt import find_channel_groups
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(1, 3, 1), torch.nn.Flatten(), torch.nn.Linear(3, 2))
        >>> group, *_ = find_channel_groups(model, torch.zeros(2, 1, 1, 1))
        >>> masks = {"0.weight": torch.tensor([True, False, True]).view(3, 1, 1, 1)}
        >>> live_channels(group, masks)
        tensor([ True, False,  True])
    """
    producer = group.slices_of(*MAKERS)[0]
    return live_along(masks[producer.name], producer.dim)[producer.index[:, 0]]


def mask_from(shape: Sequence[int], along: Mapping[int, Tensor]) -> Tensor:
    """Return the mask of the weights that are live along every dimension, on the CPU.

    Args:
        shape: the weight's shape.
        along: by dimension, which positions along it are live, bool, ``(size,)``.
    """
    mask = torch.ones(tuple(shape), dtype=torch.bool, device="cpu")
    for dim, live in along.items():
        mask &= live.view([-1 if other == dim else 1 for other in range(len(shape))])
    return mask


def refuse_sharded(weights: Mapping[str, Tensor]) -> None:
    """Raise :class:`TypeError` if a weight is sharded over processes."""
    for name, weight in weights.items():
        if is_sharded(weight):
            raise TypeError(
                f"parameter {name!r} is sharded (a DTensor), and entire channels can't be dropped "
                "from it: use DistributedDataParallel, or a method that drops single weights."
            )


def _canonical(place: ChannelSlice) -> ChannelSlice:
    return replace(place, name=canonical_name(place.name))


def changed_masks(
    masks: Mapping[str, Tensor], changes: Sequence[tuple[ChannelGroup, Tensor]]
) -> dict[str, Tensor]:
    """Return new masks for a change of the live channels.

    Args:
        masks: the present masks, which drop entire channels, by name.
        changes: groups, each with its new live channels, bool, ``(channels,)``.

    Returns:
        The new masks of all tensors in which these groups own entries, by name, on their devices.
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
