"""What a run left of a network's structure: enough to make the smaller network from it.

What can be taken out follows from the masks, from the vectors (BatchNorm's scales, shifts and
statistics, biases) that make constants of dropped channels, and from nothing else. So a file has a
bit for a weight, a number for a channel, and no trained weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.cifar.records.masks import load_tensors, packed, save_tensors, unpacked
from sparseopt import SparseOptimizer, final_masks


@dataclass(frozen=True)
class Structure:
    """What a run left.

    Args:
        masks: Bool tensors, by name of the weight; vectors that channels own have none here.
        vectors: Entries of the model's state dict of one dimension or none, by name.
    """

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
        content = load_tensors(path)
        return cls(unpacked(content["masks"]), content["vectors"])

    def save(self, path: Path) -> None:
        """Replace the file ``path``."""
        save_tensors(path, {"masks": packed(self.masks), "vectors": self.vectors})

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
