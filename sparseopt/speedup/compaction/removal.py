"""Decides which channels can be removed without changing what the model computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sparseopt.speedup.compaction.consumers import Flags, Use
from sparseopt.structured.channel_groups import Structure

__all__ = ["Fold", "Removal", "decide_removal"]


@dataclass(frozen=True)
class Fold:
    """Constants of removed channels that go into the bias of a layer.

    Attributes:
        weight: name of the layer's weight.
        columns: positions along the weight's second dimension, int64, ``(folded,)``.
        values: the constants, ``(folded,)``.
    """

    weight: str
    columns: Tensor
    values: Tensor


@dataclass(frozen=True)
class Removal:
    """The classes of channels that are removed.

    Attributes:
        removed: whether each class is removed, at the position of its smallest atom, ``(atoms,)``.
        pinned: classes that could be removed but stay, because a layer cannot be empty.
        folds: the constants that go into biases.
    """

    removed: Flags
    pinned: frozenset[int]
    folds: list[Fold]


def decide_removal(structure: Structure, uses: Sequence[Use]) -> Removal:
    """Find the largest set of channels that can be removed.

    A channel can be removed if it is harmless in every sum: no live weight connects it to a result
    that stays, or the channel is zero for every input, or it is a constant that a bias can take.
    When a channel is removed, the channels that it was computed from lose a use, so more
    of them can be removed. If a dimension would become empty, one of its classes is pinned, and the
    search starts again.
    """
    blocked = _blocked(structure)
    pinned: set[int] = set()
    while True:
        removed = _largest(blocked, pinned, uses)
        empty = _emptied(structure, removed)
        if not empty:
            return Removal(removed, frozenset(pinned), _folds(uses, removed))
        pinned |= empty


def _blocked(structure: Structure) -> Flags:
    """Return which classes can't be removed: classes in blocked groups, or in no group."""
    blocked = np.ones(len(structure.classes), dtype=np.bool_)
    for group, roots in zip(structure.groups, structure.roots, strict=True):
        blocked[roots] = group.blocked is not None
    return blocked


def _largest(blocked: Flags, pinned: set[int], uses: Sequence[Use]) -> Flags:
    """Return the largest set of classes that can be removed together.

    Nothing is removed at first. In each round a class can be removed if it is neither blocked nor
    pinned, and if all its uses are harmless, given the classes removed so far. Each round makes
    more uses harmless, so the set only grows, and the loop ends.
    """
    removed: Flags = np.zeros_like(blocked)
    while True:
        can_go = ~blocked
        can_go[list(pinned)] = False
        for use in uses:
            can_go[use.roots[~use.harmless(removed)]] = False
        if np.array_equal(can_go, removed):
            return removed
        removed = can_go


def _emptied(structure: Structure, removed: Flags) -> set[int]:
    """Return one class of each dimension that would become empty."""
    return {
        roots[0] for roots in structure.by_axis.values() if all(removed[root] for root in roots)
    }


def _folds(uses: Sequence[Use], removed: Flags) -> list[Fold]:
    folds = []
    for use in uses:
        folded = removed[use.roots] & ~use.dead(removed) & (use.values != 0)
        if folded.any():
            assert use.weight is not None
            values = torch.from_numpy(use.values[folded])
            folds.append(Fold(use.weight, torch.from_numpy(np.flatnonzero(folded)), values))
    return folds
