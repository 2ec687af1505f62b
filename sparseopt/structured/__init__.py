"""The channels of a model, found in its graph: what belongs together, what can't be removed."""

from sparseopt.structured.channel_groups import ChannelGroup, ChannelSlice, find_channel_groups

__all__ = ["ChannelGroup", "ChannelSlice", "find_channel_groups"]
