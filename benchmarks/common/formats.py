"""The number formats and memory layouts in which a network may be fastest."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

FORMATS = ("float32", "float32 channels-last", "bfloat16 channels-last")


def layout_of(name: str) -> torch.memory_format:
    """The memory layout of one of ``FORMATS``."""
    return torch.channels_last if "channels-last" in name else torch.contiguous_format


def placed(model: nn.Module, images: Tensor, name: str) -> tuple[nn.Module, Tensor]:
    """A copy of a model, and its inputs, in one of ``FORMATS``."""
    dtype, layout = torch.bfloat16 if "bfloat16" in name else torch.float32, layout_of(name)
    copied = copy.deepcopy(model).to(dtype=dtype, memory_format=layout)
    return copied, images.to(dtype=dtype, memory_format=layout)
