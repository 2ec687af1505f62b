"""The channels of a protocol's network, which methods that drop whole ones have to know."""

from __future__ import annotations

import functools

import torch

from benchmarks.cifar.models.networks import build_model
from benchmarks.cifar.protocols.protocol import Protocol
from benchmarks.cifar.protocols.runspec import RunSpec
from sparseopt import ChannelGroup, find_channel_groups


@functools.cache
def channels_of(protocol: Protocol, num_classes: int) -> tuple[ChannelGroup, ...]:
    """The channel groups of the full network, found once in a process.

    They are found on a network of their own: one that is ready for several devices has layers
    that cannot be traced. The random state is left as it is.

    Args:
        protocol: Says which network, and how large images are.
        num_classes: Number of classes.

    Raises:
        UntraceableModelError: If ``torch.export`` refuses a user's own network.
    """
    # BatchNorm wants more than one image.
    images = torch.zeros(2, 3, protocol.image_size, protocol.image_size)
    with torch.random.fork_rng(devices=[]):
        model = build_model(protocol, RunSpec("dense", None, None, 0), num_classes)
        return tuple(find_channel_groups(model, images))
