"""The structure of a trained network on disk: its masks and vectors.

These decide which channels can be removed: the masks, and the vectors (BatchNorm's scales, shifts
and statistics, biases) from which dropped channels get constants. So a file has no trained weights,
and takes less than a bit for each weight when it is compressed.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common.files import write_atomic
from sparseopt import SparseOptimizer, final_masks


@dataclass(frozen=True)
class Structure:
    """The masks and vectors of a finished run."""

    masks: dict[str, Tensor]
    vectors: dict[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, optimizer: SparseOptimizer) -> Structure:
        """The structure of a model at the end of its training."""
        masks = {name: mask for name, mask in final_masks(optimizer).items() if mask.dim() > 1}
        return cls(masks, _vectors(model))

    @classmethod
    def load(cls, path: Path) -> Structure:
        """Load the file that ``save`` wrote."""
        tensors = load_tensors(path)
        # A mask has two dimensions at least, and a vector one at most.
        masks = {name: value for name, value in tensors.items() if value.dim() > 1}
        return cls(masks, {name: value for name, value in tensors.items() if value.dim() <= 1})

    def save(self, path: Path) -> None:
        """Replace the file ``path``."""
        save_tensors(path, self.masks | self.vectors)

    def put_into(self, model: nn.Module) -> SparseOptimizer:
        """Give a model this structure; returns an optimizer with its masks."""
        wanted = _vectors(model).keys()
        if wanted != self.vectors.keys():
            differing = sorted(wanted ^ self.vectors.keys())
            raise RuntimeError(f"the structure is of another network: {', '.join(differing)}")
        model.load_state_dict(self.vectors, strict=False)
        return masked_by(model, self.masks)


def masked_by(model: nn.Module, masks: dict[str, Tensor]) -> SparseOptimizer:
    """An optimizer with these masks, which never move; all dropped weights become 0."""
    inner = torch.optim.SGD(model.parameters(), lr=0.0)
    everywhere = dict.fromkeys(masks, 1.0)
    return SparseOptimizer(inner, model, method="static", init=everywhere, mask=masks)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write masks or vectors, compressed."""
    buffer = io.BytesIO()
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    np.savez_compressed(buffer, **arrays)
    write_atomic(path, buffer.getvalue())


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Load the tensors that ``save_tensors`` wrote, on the CPU."""
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def _vectors(model: nn.Module) -> dict[str, Tensor]:
    state = model.state_dict()
    return {name: value.detach().cpu().clone() for name, value in state.items() if value.dim() <= 1}
