"""How much a channel matters, and how much one would matter that is not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparseopt.structured.channel_groups import ChannelGroup
from sparseopt.structured.channel_masks import MAKERS, Part, parts_of

__all__ = ["gradient_score", "magnitude"]


def magnitude(group: ChannelGroup, weights: Mapping[str, Tensor]) -> Tensor:
    r"""Return how much each channel of a group adds to what is computed from it.

    It is RigL's :math:`|w|`, summed over the weights that the channel is multiplied by, times the
    size of its values: :math:`|\gamma|`, summed over the normalisations that it goes through, or if
    there are none, :math:`|w|`, summed over the weights that make it. A normalisation undoes the
    size of the latter.

    Args:
        group: the group.
        weights: the model's parameters, by name.

    Returns:
        Scores in double precision, ``(channels,)``, on the CPU.
    """
    sizes = parts_of(group, weights, "scale") or parts_of(group, weights, *MAKERS)
    return _summed(parts_of(group, weights, "consumer")) * _summed(sizes)


def gradient_score(group: ChannelGroup, gradients: Mapping[str, Tensor]) -> Tensor:
    """Return how much the loss would fall with the weights that each channel is multiplied by.

    It is RigL's :math:`|g|`, summed over these weights. Of a dropped channel it says something only
    if that had a fresh filter in the forward pass:
    :func:`~sparseopt.channels.put_fresh_channels`.

    Args:
        group: the group.
        gradients: the gradients of the model's parameters, by name.

    Returns:
        Scores in double precision, ``(channels,)``, on the CPU.
    """
    return _summed(parts_of(group, gradients, "consumer"))


def _summed(parts: Sequence[Part]) -> Tensor:
    return torch.stack([part.magnitudes() for part in parts]).sum(0)
