"""RigL on filters and nothing else: what channels need more than."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sparseopt import Method, Move, Rewiring, SparseLayer, Update


@dataclass(frozen=True)
class NaiveChannels(Method):
    """Drops the filters of smallest magnitude, and grows those of largest gradient.

    A dropped channel owns its filter alone: not its normalisation, nor what reads it.
    """

    name: ClassVar[str] = "naive"
    needs_dense_gradient: ClassVar[bool] = True

    def live_count(self, shape: tuple[int, ...], target: int) -> int:
        """Return the count of whole filters that is nearest to ``target``."""
        fan_in = math.prod(shape[1:])
        return fan_in * max(1, round(target / fan_in))

    def initial_mask(self, scores: Tensor, live: int) -> Tensor:
        """Return the mask of the filters with the largest scores."""
        filters = scores.flatten(1).sum(1)
        return _whole(filters.topk(live * len(scores) // scores.numel()).indices, scores)

    def moves(self, layers: Sequence[SparseLayer], update: Update) -> list[Move]:
        """Return for each layer which filters are live after the update."""
        return [self._move(layer, update.fraction) for layer in layers]

    def _move(self, layer: SparseLayer, fraction: float) -> Move:
        live = layer.mask.flatten(1).any(1)
        stay = int(live.sum()) - int(fraction * int(live.sum()))
        sizes = layer.weight.detach().flatten(1).abs().sum(1).masked_fill(~live, -1.0)
        survivors = sizes.topk(stay).indices
        assert layer.weight.grad is not None
        pulls = layer.weight.grad.flatten(1).abs().sum(1).index_fill(0, survivors, torch.inf)
        mask = _whole(pulls.topk(int(live.sum())).indices, layer.weight)
        kept = _whole(survivors, layer.weight)
        moved = layer.live - int(kept.sum())
        return Rewiring(moved, moved, kept.reshape(-1), mask.reshape(-1))


def _whole(filters: Tensor, like: Tensor) -> Tensor:
    mask = torch.zeros(like.shape, dtype=torch.bool)
    mask[filters] = True
    return mask
