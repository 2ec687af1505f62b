"""The number formats and memory layouts in which a network may be fastest."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sparseopt.speedup.inference.assembly import has_bfloat16

FORMATS = ("float32", "float32 channels-last", "bfloat16 channels-last")


def precisions_of(device: torch.device) -> tuple[str, ...]:
    """The number formats to time, the fastest last.

    Without instructions for it, dense code takes many times as long in bfloat16.
    """
    return ("float32", "bfloat16") if has_bfloat16(device) else ("float32",)


def layout_of(name: str) -> torch.memory_format:
    """The memory layout of one of ``FORMATS``."""
    return torch.channels_last if "channels-last" in name else torch.contiguous_format


def placed(model: nn.Module, images: Tensor, name: str) -> tuple[nn.Module, Tensor]:
    """A copy of a model, and its inputs, in one of ``FORMATS``."""
    dtype, layout = torch.bfloat16 if "bfloat16" in name else torch.float32, layout_of(name)
    copied = copy.deepcopy(model).to(dtype=dtype, memory_format=layout)
    return copied, images.to(dtype=dtype, memory_format=layout)
