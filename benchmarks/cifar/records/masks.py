"""What masks leave of a model, on disk."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common.files import write_atomic


def save_masks(path: Path, masks: Mapping[str, Tensor]) -> None:
    """Write masks, one bit a weight.

    Args:
        path: The file to replace.
        masks: Bool tensors by layer name.
    """
    save_tensors(path, packed(masks))


def load_masks(path: Path) -> dict[str, Tensor]:
    """The masks that ``save_masks`` wrote."""
    return unpacked(load_tensors(path))


def packed(masks: Mapping[str, Tensor]) -> dict[str, Any]:
    """Masks as shapes and bits."""
    return {
        name: (list(mask.shape), torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1))))
        for name, mask in masks.items()
    }


def unpacked(bits_by_name: Mapping[str, Any]) -> dict[str, Tensor]:
    """The masks that ``packed`` was given."""
    return {
        name: torch.from_numpy(np.unpackbits(bits.numpy(), count=math.prod(shape)).view(bool))
        .view(shape)
        .clone()
        for name, (shape, bits) in bits_by_name.items()
    }


def save_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors, and numbers and texts beside them, in torch's format."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_atomic(path, buffer.getvalue())


def load_tensors(path: Path) -> dict[str, Any]:
    """What ``save_tensors`` wrote, on the CPU."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content
