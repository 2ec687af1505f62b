"""Positions of live weights: ascending, and four bytes each where that is wide enough.

On a CPU this is NumPy's work: torch would wake its threads for what one does in microseconds.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Integers: TypeAlias = npt.NDArray[np.integer[Any]]

__all__ = ["index_dtype", "live_indices", "mark", "merged", "take"]


def mark(indices: Tensor, count: int) -> Tensor:
    """Return a bool tensor of shape ``(count,)``, true at ``indices``.

    Example:
        >>> mark(torch.tensor([0, 2]), 3)
        tensor([ True, False,  True])
    """
    marked = torch.zeros(count, dtype=torch.bool, device=indices.device)
    return marked.scatter_(0, indices, True)


def live_indices(mask: Tensor, live: int) -> Tensor:
    """Return the positions of the ``live`` true entries of a 1-D bool ``mask``, ascending.

    They are int32 where that is wide enough: gathering with int32 takes two thirds of the time of
    int64, and the index half the memory.
    """
    if mask.device.type == "cpu":
        positions = torch.from_numpy(np.flatnonzero(mask.numpy()))
    else:
        positions = _indices_on_device(mask, live)
    return positions.to(index_dtype(mask.numel()))


def index_dtype(count: int) -> torch.dtype:
    """Return int32, or int64 if positions up to ``count`` need it."""
    return torch.int32 if count <= torch.iinfo(torch.int32).max else torch.int64


def take(values: Tensor, places: Tensor) -> Tensor:
    """Return the entries of a 1-D tensor at ``places``.

    Example:
        >>> take(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 2]))
        tensor([1., 3.])
    """
    if values.device.type == "cpu" and values.dtype != torch.bfloat16:
        return torch.from_numpy(values.numpy().take(places.numpy()))
    return values.index_select(0, places)


def merged(
    before: Tensor, places: Tensor, grown: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Put the positions that stay and those that grow together.

    Args:
        before: ascending positions below ``count``.
        places: which entries of ``before`` stay, ascending.
        grown: ascending positions below ``count``, none of those that stay.
        count: above all positions.

    Returns:
        The positions, ascending; for each its place in ``before``, 0 if it is not there; and
        whether it is there.

    Example:
        >>> before, places, grown = torch.tensor([1, 4, 7]), torch.tensor([1]), torch.tensor([7, 9])
        >>> merged(before, places, grown, 10)
        (tensor([4, 7, 9]), tensor([1, 2, 0]), tensor([ True,  True, False]))
    """
    if before.device.type == "cpu" and count <= torch.iinfo(torch.int32).max:
        arrays = _merged_on_cpu(before.numpy(), places.numpy(), grown.numpy(), count)
        after, numbers = (torch.from_numpy(array).to(before.dtype) for array in arrays)
    else:
        after, numbers = _merged_on_device(before, places, grown, count)
    return after, (numbers - 1).clamp_(min=0), numbers > 0


def _merged_on_cpu(
    before: Integers, places: Integers, grown: Integers, count: int
) -> tuple[Integers, Integers]:
    """Return positions, and their places in ``before`` counted from 1; 0 if they are not there."""
    # Position and place in one number: sorting two sorted runs is merging them, which only a stable
    # sort sees.
    stay = before[places].astype(np.int64) << 32 | places + 1
    keys = np.sort(np.concatenate([stay, grown.astype(np.int64) << 32]), kind="stable")
    after, numbers = keys >> 32, keys & 0xFFFFFFFF
    was_there = np.zeros(count, dtype=bool)
    was_there[before] = True
    back = grown[was_there[grown]]
    numbers[np.searchsorted(after, back)] = np.searchsorted(before, back) + 1
    return after, numbers


def _merged_on_device(
    before: Tensor, places: Tensor, grown: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    after = torch.cat([take(before, places), grown]).sort().values
    numbers = torch.arange(1, before.numel() + 1, dtype=before.dtype, device=before.device)
    table = torch.zeros(count, dtype=before.dtype, device=before.device)
    return after, take(table.scatter_(0, before, numbers), after)


def _indices_on_device(mask: Tensor, live: int) -> Tensor:
    # nonzero() would report its count to the host, which knows it already.
    slots = torch.where(mask, mask.cumsum(0) - 1, live)
    positions = torch.empty(live + 1, dtype=torch.int64, device=mask.device)
    return positions.scatter_(0, slots, torch.arange(mask.numel(), device=mask.device))[:live]
