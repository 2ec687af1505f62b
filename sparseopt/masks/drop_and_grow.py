"""Decides exactly which weights of a layer drop and which grow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from sparseopt.distributed.dtensor import full_tensor
from sparseopt.masks.indices import live_indices, match_positions, merged, take, where
from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.norm_slices import protected
from sparseopt.masks.topk import largest_indices, smallest

__all__ = ["Regrow", "Transition", "plan_mask", "plan_update", "surviving"]

Regrow = Literal["keep", "zero", "never"]


@dataclass(frozen=True)
class Transition:
    """A change of one layer's mask that is decided and not yet made.

    The tensors have one entry for each weight that will be live: shape ``(live,)``, in logical
    order.

    Attributes:
        positions: the positions of these weights, ascending.
        origin: for each weight, its index among the weights that are live now; 0 if it is not live
            now.
        kept: whether each weight keeps its value and its optimizer state, bool.
        dropped: number of weights dropped.
        grown: number of weights grown.
        stayed: how many of these weights are live now too, 0-dimensional, on the device.
        start: the first values of weights that are not kept, of the weight's shape; ``None`` for
            zero.
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
        """Convert values of the weights live before, ``(live,)``, to values of those live after.

        Weights that are not kept get ``fresh``.
        """
        return where(self.kept, take(values, self.origin), fresh)


@torch.no_grad()
def surviving(layer: SparseLayer, drop_scores: Tensor | None, drop: int) -> Tensor:
    """Return which live weights of ``layer`` do not drop, bool, ``(live,)``.

    Under weight norm the largest weight of every slice survives, whatever its score.

    Args:
        layer: the layer.
        drop_scores: scores of the live weights, ``(live,)``; needed if ``drop`` is not 0.
        drop: how many weights drop, the lowest scores first; at most ``layer.droppable``.
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
        layer: the layer.
        drop: how many live weights to drop, the lowest ``drop_scores`` first.
        grow: how many weights to grow, the highest ``grow_scores`` first.
        drop_scores: scores of the live weights, ``(live,)`` in logical order; needed if ``drop`` is
            not 0.
        grow_scores: scores of the weight's shape; needed if ``grow`` is not 0.
        regrow: what happens if a weight dropped in this update would grow again: it keeps its value
            and state (``"keep"``), it starts again from zero (``"zero"``), or it is not a candidate
            (``"never"``).

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
    scores = full_tensor(grow_scores).reshape(-1)
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
        layer: the layer.
        drop: how many live weights drop.
        grow: how many weights grow.
        survivors: which live weights don't drop, bool, ``(numel,)`` in logical order.
        mask: which weights are live afterwards, survivors included, bool, ``(numel,)``.
        start: the first values of new weights, of the weight's shape; ``None`` for zero.
        regrow: as in :func:`plan_update`.
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
    """Return the transition from live weights at ``before`` to live weights at ``after``.

    ``stays`` says which weights at ``before`` do not drop. If a weight is at ``before`` and
    at ``after``, but ``stays`` is false for it, this update drops and grows it. Then it is kept
    only if ``regrow`` is ``"keep"``.
    """
    origin, was_live = match_positions(before, after, layer.numel)
    kept = was_live if regrow == "keep" else was_live & take(stays, origin)
    return Transition(after, origin, kept, drop, grow, was_live.sum())
