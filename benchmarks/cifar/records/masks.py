"""Final masks on disk, between the run that found them and the run that starts with them."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.cifar.files import write_atomic


def save_masks(path: Path, masks: Mapping[str, Tensor]) -> None:
    """Write masks, one bit a weight.

    Args:
        path: The file to replace.
        masks: Bool tensors by layer name.
    """
    packed = {
        name: (list(mask.shape), torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1))))
        for name, mask in masks.items()
    }
    buffer = io.BytesIO()
    torch.save(packed, buffer)
    write_atomic(path, buffer.getvalue())


def load_masks(path: Path) -> dict[str, Tensor]:
    """The masks that ``save_masks`` wrote."""
    packed = torch.load(path, map_location="cpu", weights_only=True)
    return {
        name: torch.from_numpy(np.unpackbits(bits.numpy(), count=math.prod(shape)).view(bool))
        .view(shape)
        .clone()
        for name, (shape, bits) in packed.items()
    }
