"""What masks leave of a network, on disk: the masks, and what the smaller network is made from.

What can be taken out follows from the masks, from the vectors (BatchNorm's scales, shifts and
statistics, biases) that make constants of dropped channels, and from nothing else. So a file has a
bit for a weight, a number for a channel, and no trained weights.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common.files import write_atomic
from sparseopt import SparseOptimizer, final_masks


@dataclass(frozen=True)
class Structure:
    """What a run left."""

    masks: dict[str, Tensor]
    vectors: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, optimizer: SparseOptimizer) -> Structure:
        """Of a model at the end of its training."""
        masks = {name: mask for name, mask in final_masks(optimizer).items() if mask.dim() > 1}
        vectors = {
            name: value.detach().cpu().clone()
            for name, value in model.state_dict().items()
            if value.dim() <= 1
        }
        return cls(masks, vectors)

    @classmethod
    def load(cls, path: Path) -> Structure:
        """From the file that ``save`` wrote."""
        content = _load(path)
        return cls(_unpacked(content["masks"]), content["vectors"])

    def save(self, path: Path) -> None:
        """Replace the file ``path``."""
        _save(path, {"masks": _packed(self.masks), "vectors": self.vectors})

    def put_into(self, model: nn.Module) -> SparseOptimizer:
        """Give a model, on any device, this structure; its other weights stay what they are.

        Returns:
            An optimizer that has the masks, as ``compact`` and ``condense`` want it.

        Raises:
            RuntimeError: If the model has not the same vectors.
        """
        wanted = {name for name, value in model.state_dict().items() if value.dim() <= 1}
        if wanted != self.vectors.keys():
            differing = sorted(wanted ^ self.vectors.keys())
            raise RuntimeError(f"the structure is of another network: {', '.join(differing)}")
        model.load_state_dict(self.vectors, strict=False)
        return masked_by(model, self.masks)


def masked_by(model: nn.Module, masks: dict[str, Tensor]) -> SparseOptimizer:
    """An optimizer that has these masks and never moves them; the model's other weights are 0."""
    inner = torch.optim.SGD(model.parameters(), lr=0.0)
    everywhere = dict.fromkeys(masks, 1.0)
    return SparseOptimizer(inner, model, method="static", init=everywhere, mask=masks)


def save_masks(path: Path, masks: Mapping[str, Tensor]) -> None:
    """Write masks, one bit a weight."""
    _save(path, _packed(masks))


def load_masks(path: Path) -> dict[str, Tensor]:
    """The masks that ``save_masks`` wrote."""
    return _unpacked(_load(path))


def _packed(masks: Mapping[str, Tensor]) -> dict[str, Any]:
    """Masks as shapes and bits."""
    return {
        name: (list(mask.shape), torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1))))
        for name, mask in masks.items()
    }


def _unpacked(bits_by_name: Mapping[str, Any]) -> dict[str, Tensor]:
    """The masks that ``_packed`` was given."""
    return {
        name: torch.from_numpy(np.unpackbits(bits.numpy(), count=math.prod(shape)).view(bool))
        .view(shape)
        .clone()
        for name, (shape, bits) in bits_by_name.items()
    }


def _save(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors, and numbers and texts beside them, in torch's format."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_atomic(path, buffer.getvalue())


def _load(path: Path) -> dict[str, Any]:
    """What ``_save`` wrote, on the CPU."""
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content
