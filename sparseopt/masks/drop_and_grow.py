"""Deciding exactly which weights of a layer drop and which grow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from sparseopt.distributed.dtensor import whole
from sparseopt.masks.indices import live_indices, match_positions, merged, take, where
from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.norm_slices import protected
from sparseopt.masks.topk import largest_indices, smallest

__all__ = ["Regrow", "Transition", "plan_mask", "plan_update", "surviving"]

Regrow = Literal["keep", "zero", "never"]


@dataclass(frozen=True)
class Transition:
    """A change of one layer's mask that is decided and not yet made.

    All tensors are about the weights that will be live, in logical order, and of shape ``(live,)``.

    Attributes:
        positions: where they are, ascending.
        origin: which of the weights that are live now each one is, counted from 0; 0 also where it
            is none of them.
        kept: whether it keeps its value and its optimizer state, bool.
        dropped: weights dropped.
        grown: weights grown.
        stayed: how many are live now too, 0-dimensional, on the device.
        start: what those begin with that are not kept, of the weight's shape; ``None`` for zero.
    """

    positions: Tensor
    origin: Tensor
    kept: Tensor
    dropped: int
    grown: int
    stayed: Tensor
    start: Tensor | None = None

    def make(self, layer: SparseLayer) -> None:
        """Change the layer's mask and write its weight."""
        layer._commit(
            self.positions,
            self.kept,
            start=self.start,
            dropped=self.dropped,
            grown=self.grown,
        )

    def carry_over(self, values: Tensor, fresh: float) -> Tensor:
        """Return what was held for weights live before, ``(live,)``, for those live after.

        Where a weight was not kept it is ``fresh``.
        """
        return where(self.kept, take(values, self.origin), fresh)


@torch.no_grad()
def surviving(layer: SparseLayer, drop_scores: Tensor | None, drop: int) -> Tensor:
    """Return which live weights of ``layer`` do not drop, bool, ``(live,)``.

    Under weight norm the largest weight of every slice survives, with any score.

    Args:
        layer: whose weights.
        drop_scores: scores of the live weights, ``(live,)``; needed if ``drop`` is not 0.
        drop: how many of the lowest drop, at most ``layer.droppable``.
    """
    if not drop:
        return torch.ones(layer.live, dtype=torch.bool, device=layer.weight.device)
    assert drop_scores is not None
    return ~smallest(drop_scores, drop, protected(layer))


@torch.no_grad()
def plan_update(
    layer: SparseLayer,
    *,
    drop: int,
    grow: int,
    drop_scores: Tensor | None,
    grow_scores: Tensor | None,
    regrow: Regrow = "keep",
) -> Transition:
    """Decide which weights of ``layer`` to drop and grow; change nothing.

    Collective if the layer is sharded.

    Args:
        layer: whose weights.
        drop: how many live weights to drop, the lowest ``drop_scores`` first.
        grow: how many weights to grow, the highest ``grow_scores`` first.
        drop_scores: scores of the live weights, ``(live,)`` in logical order; needed if ``drop`` is
            not 0.
        grow_scores: scores of the weight's shape; needed if ``grow`` is not 0.
        regrow: what becomes of a weight that was dropped just now and is a candidate again: it
            keeps its value and state (``"keep"``), it starts afresh (``"zero"``), or it is no
            candidate (``"never"``).

    Returns:
        The transition.
    """
    before = layer.positions()
    stays = surviving(layer, drop_scores, drop)
    places = live_indices(stays, layer.live - drop)
    survivors = take(before, places)
    if not grow:
        kept = torch.ones_like(survivors, dtype=torch.bool)
        return Transition(survivors, places, kept, drop, 0, kept.sum())
    assert grow_scores is not None
    scores = whole(grow_scores).reshape(-1)
    if not scores.is_floating_point():
        scores = scores.float()
    grown = largest_indices(scores, grow, before if regrow == "never" else survivors)
    return _between(layer, before, stays, merged(survivors, grown), drop, grow, regrow)


@torch.no_grad()
def plan_mask(
    layer: SparseLayer,
    *,
    drop: int,
    grow: int,
    survivors: Tensor,
    mask: Tensor,
    start: Tensor | None,
    regrow: Regrow,
) -> Transition:
    """Return the transition of ``layer`` to a mask that a method has decided on.

    Collective if the layer is sharded.

    Args:
        layer: whose mask.
        drop: how many live weights drop.
        grow: how many weights grow.
        survivors: which live weights don't drop, bool, ``(numel,)`` in logical order.
        mask: which weights are live afterwards, survivors included, bool, ``(numel,)``.
        start: what new weights begin with, of the weight's shape; ``None`` for zero.
        regrow: as :func:`plan_update` has it.
    """
    before = layer.positions()
    after = live_indices(mask, layer.live - drop + grow)
    stays = take(survivors, before)
    return replace(_between(layer, before, stays, after, drop, grow, regrow), start=start)


def _between(
    layer: SparseLayer,
    before: Tensor,
    stays: Tensor,
    after: Tensor,
    drop: int,
    grow: int,
    regrow: Regrow,
) -> Transition:
    """Return what changes from the positions ``before``, of which some stay, to ``after``."""
    origin, was_live = match_positions(before, after, layer.numel)
    kept = was_live if regrow == "keep" else was_live & take(stays, origin)
    return Transition(after, origin, kept, drop, grow, was_live.sum())
