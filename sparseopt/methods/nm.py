"""N:M sparsity that moves: RigL inside every group of M weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from sparseopt.distributed.dtensor import full_tensor
from sparseopt.masks.drop_and_grow import surviving
from sparseopt.masks.layer import SparseLayer
from sparseopt.methods.gradient_memory import GradientMemory
from sparseopt.methods.registry import register_method
from sparseopt.methods.rigl import RigL
from sparseopt.methods.update import Update
from sparseopt.utils.deprecation import renamed_fields
from sparseopt.utils.validation import check_count

__all__ = ["NM"]


@register_method
@renamed_fields(grow="gradient")
@dataclass(frozen=True)
class NM(RigL):
    """RigL under the constraint that exactly N of every M weights are live.

    Groups are M neighbours along the second dimension, the inputs of ``Linear`` and ``Conv``, and
    growth stays within them. The density has to be ``density=n / m``. Layers whose second dimension
    is not a multiple of M stay dense, and so do layers that ``init`` makes dense. ``init`` has no
    other effect.

    Args:
        n: live weights of a group, at least 1.
        m: weights of a group, more than ``n``.

    Raises:
        TypeError: if ``n`` or ``m`` is not a whole number.
        ValueError: if ``n`` or ``m`` is out of range, or ``regrow="never"`` leaves groups without
            candidates.

    Example:
        >>> import torch
        >>> from sparseopt import SparseOptimizer
        >>> model = torch.nn.Linear(8, 2)
        >>> optimizer = SparseOptimizer(torch.optim.SGD(model.parameters()), model,
        ...                             method="n:m", density=0.5, total_steps=1000)
        >>> model.weight.unflatten(1, (-1, 4)).ne(0).sum(-1)
        tensor([[2, 2],
                [2, 2]])

    Reference: the pattern after Zhou et al. 2021, "Learning N:M Fine-grained Structured Sparse
    Neural Networks From Scratch"; the update after Evci et al. 2020, algorithm 1.
    """

    name: ClassVar[str] = "n:m"

    # Keyword-only, because by position this field of RigL would come before n and m.
    gradient: GradientMemory | None = field(default=None, kw_only=True)
    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("n", self.n, minimum=1)
        check_count("m", self.m, minimum=self.n + 1)
        if self.regrow == "never" and 2 * self.n > self.m:
            raise ValueError(
                f"regrow='never' does not suit {self.n}:{self.m}: a group that loses all its "
                f"{self.n} live weights has only {self.m - self.n} other weights to grow."
            )

    def initial_density(self, density: float) -> float:
        """Return the density, which has to be N over M.

        Raises:
            ValueError: if it is another density.
        """
        if density != self.n / self.m:
            raise ValueError(
                f"density={density} does not suit {self.n}:{self.m}: pass density={self.n / self.m}"
                ", or NM(n=..., m=...) with another ratio."
            )
        return density

    def live_count(self, shape: tuple[int, ...], target: int) -> int:
        """Return N of every M weights, or all if groups don't fit or the layer shall be dense."""
        numel = torch.Size(shape).numel()
        if target == numel or shape[1] % self.m:
            return numel
        return numel // self.m * self.n

    def initial_mask(self, scores: Tensor, live: int) -> Tensor:
        """Return the mask of the N highest scores of every group; all true if groups don't fit."""
        if scores.shape[1] % self.m:
            return torch.ones_like(scores, dtype=torch.bool)
        return self._ungrouped(self._ranks(self._grouped(scores)) < self.n, scores.shape)

    def grow_scores(self, layer: SparseLayer, update: Update) -> Tensor:
        """Return 1 for the best candidates of each group, as many as the group drops, else 0."""
        count = self._move(layer, update.fraction).drop
        stays = surviving(layer, self.drop_scores(layer, update), count)
        survivors = self._grouped(full_tensor(layer.expand(stays)))
        before = self._grouped(full_tensor(layer.mask))
        lost = before.sum(-1, keepdim=True) - survivors.sum(-1, keepdim=True)
        taken = before if self.regrow == "never" else survivors
        scores = self._grouped(full_tensor(super().grow_scores(layer, update)))
        scores = scores.masked_fill(taken, -torch.inf)
        return self._ungrouped(self._ranks(scores) < lost, layer.weight.shape).float()

    def _grouped(self, tensor: Tensor) -> Tensor:
        inputs_last = tensor.movedim(1, -1)
        return inputs_last.reshape(*inputs_last.shape[:-1], -1, self.m)

    @staticmethod
    def _ungrouped(groups: Tensor, shape: torch.Size) -> Tensor:
        return groups.flatten(-2).movedim(-1, 1).reshape(shape)

    @staticmethod
    def _ranks(groups: Tensor) -> Tensor:
        """Return each score's rank in its group, 0 for the highest; ties to the lower index."""
        order = groups.argsort(dim=-1, descending=True, stable=True)
        places = torch.arange(groups.shape[-1], device=groups.device).expand_as(order)
        return torch.empty_like(order).scatter_(-1, order, places)
