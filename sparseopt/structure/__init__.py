"""The channels of a model, found in its graph: what belongs together and what cannot go."""

from sparseopt.structure.groups import ChannelGroup, ChannelSlice, find_channel_groups
from sparseopt.structure.tracing import UntraceableModelError

__all__ = ["ChannelGroup", "ChannelSlice", "UntraceableModelError", "find_channel_groups"]
