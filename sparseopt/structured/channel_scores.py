"""Scores of channels: of live channels for dropping, and of dropped channels for growing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparseopt.structured.channel_groups import MAKERS, ChannelGroup
from sparseopt.structured.channel_masks import Part, parts_of

__all__ = ["gradient_score", "magnitude"]


def magnitude(group: ChannelGroup, weights: Mapping[str, Tensor]) -> Tensor:
    r"""Return how much each channel of a group contributes to the layers that consume it.

    The score is a product. One factor is RigL's :math:`|w|`, summed over the weights that the
    channel is multiplied by. The other factor is the size of the channel's values. If the channel
    goes through normalisations, that is their :math:`|\gamma|`, summed, because a normalisation
    cancels the size of the weights before it. Otherwise it is :math:`|w|`, summed over the weights
    that produce the channel.

    Args:
        group: the group.
        weights: the model's parameters, by name.

    Returns:
        Scores in double precision, ``(channels,)``, on the CPU.
    """
    sizes = parts_of(group, weights, "scale") or parts_of(group, weights, *MAKERS)
    return _summed(parts_of(group, weights, "consumer")) * _summed(sizes)


def gradient_score(group: ChannelGroup, gradients: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of absolute gradients of the weights that consume each channel.

    This is RigL's growth criterion :math:`|g|`, by channel. For a dropped channel it is 0 unless
    ``put_fresh_channels()`` gave the channel a fresh filter before the forward pass.

    Args:
        group: the group.
        gradients: the gradients of the model's parameters, by name.

    Returns:
        Scores in double precision, ``(channels,)``, on the CPU.
    """
    return _summed(parts_of(group, gradients, "consumer"))


def _summed(parts: Sequence[Part]) -> Tensor:
    return torch.stack([part.magnitudes() for part in parts]).sum(0)
