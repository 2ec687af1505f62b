"""Whole channels, live or dropped: how many, which, and what a new one begins with."""

from sparseopt.channels.construction import channel_layers
from sparseopt.channels.exchange import changed_masks
from sparseopt.channels.fresh import put_fresh_channels
from sparseopt.channels.parts import (
    MAKERS,
    WEIGHTS,
    canonical_groups,
    live_channels,
    refuse_sharded,
)
from sparseopt.channels.scores import magnitude, pull

__all__ = [
    "MAKERS",
    "WEIGHTS",
    "canonical_groups",
    "changed_masks",
    "channel_layers",
    "live_channels",
    "magnitude",
    "pull",
    "put_fresh_channels",
    "refuse_sharded",
]
