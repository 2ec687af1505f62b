"""Positions of live weights: ascending, and four bytes each where that is wide enough.

On a CPU, NumPy does this: torch would wake all its threads for work of microseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Integers: TypeAlias = npt.NDArray[np.integer[Any]]

__all__ = [
    "concat_positions",
    "count_true",
    "index_dtype",
    "live_indices",
    "mark",
    "match_positions",
    "merged",
    "take",
    "where",
]

#: The types of weights and optimizer state that NumPy has too.
NUMPY_DTYPES: Final = frozenset(
    {torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.bool}
)


def mark(indices: Tensor, count: int) -> Tensor:
    """Return a bool tensor of shape ``(count,)``, true at ``indices``.

    Example:
        >>> mark(torch.tensor([0, 2]), 3)
        tensor([ True, False,  True])
    """
    marked = torch.zeros(count, dtype=torch.bool, device=indices.device)
    return marked.scatter_(0, indices, True)


def count_true(mask: Tensor) -> int:
    """Return how many entries of a bool tensor are true; waits for its device.

    Example:
        >>> count_true(torch.tensor([True, False, True]))
        2
    """
    if mask.device.type == "cpu":
        # Torch widens each entry to eight bytes to add them up, and takes forty times as long.
        return int(np.count_nonzero(mask.numpy()))
    return int(mask.sum())


def live_indices(mask: Tensor, live: int) -> Tensor:
    """Return the positions of the ``live`` true entries of a 1-D bool ``mask``, ascending.

    They are int32 where that is wide enough. With int32, gathering takes two thirds of the time
    that it takes with int64, and the index takes half the memory.
    """
    if mask.device.type == "cpu":
        return _as_index(np.flatnonzero(mask.numpy()), mask.numel())
    return _indices_on_device(mask, live).to(index_dtype(mask.numel()))


def index_dtype(count: int) -> torch.dtype:
    """Return int32, or int64 if positions up to ``count`` need it."""
    return torch.int32 if count <= torch.iinfo(torch.int32).max else torch.int64


def concat_positions(positions: Sequence[Tensor], starts: Tensor, counts: Tensor) -> Tensor:
    """Return positions in several tensors as positions in their concatenation.

    Args:
        positions: for each tensor, the positions in it.
        starts: where each tensor starts, of the dtype of the positions.
        counts: the number of positions in each tensor.

    Example:
        >>> starts, counts = torch.tensor([0, 10]), torch.tensor([1, 2])
        >>> concat_positions([torch.tensor([3]), torch.tensor([0, 4])], starts, counts)
        tensor([ 3, 10, 14])
    """
    together = torch.cat(list(positions))
    if together.device.type == "cpu":
        offsets = torch.from_numpy(starts.numpy().repeat(counts.numpy()))
    else:
        offsets = torch.repeat_interleave(starts, counts, output_size=together.numel())
    return together.add_(offsets)


def take(values: Tensor, places: Tensor) -> Tensor:
    """Return the entries of a 1-D tensor at ``places``.

    Example:
        >>> take(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 2]))
        tensor([1., 3.])
    """
    if _numpy_knows(values):
        return torch.from_numpy(values.numpy().take(places.numpy()))
    return values.index_select(0, places)


def where(mask: Tensor, values: Tensor, fill: float) -> Tensor:
    """Return a 1-D tensor with ``fill`` where ``mask`` is false.

    Example:
        >>> where(torch.tensor([True, False]), torch.tensor([1.0, 2.0]), 0.0)
        tensor([1., 0.])
    """
    if _numpy_knows(values):
        array = values.numpy()
        return torch.from_numpy(np.where(mask.numpy(), array, array.dtype.type(fill)))
    return torch.where(mask, values, values.new_full((), fill))


def merged(first: Tensor, second: Tensor) -> Tensor:
    """Return two ascending tensors of positions as one, ascending.

    Example:
        >>> merged(torch.tensor([0, 5]), torch.tensor([3]))
        tensor([0, 3, 5])
    """
    together = torch.cat([first, second])
    if together.device.type == "cpu":
        # NumPy's stable sort merges two sorted runs; its other sorts ignore the runs.
        return torch.from_numpy(np.sort(together.numpy(), kind="stable"))
    return together.sort().values


def match_positions(before: Tensor, after: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the index of each entry of ``after`` in ``before``, and whether it is there at all.

    Both are ascending positions below ``count``. The index of an entry that is missing is 0.

    Example:
        >>> match_positions(torch.tensor([1, 4, 7]), torch.tensor([4, 5]), 10)
        (tensor([1, 0]), tensor([ True, False]))
    """
    table = torch.zeros(count, dtype=before.dtype, device=before.device)
    numbers = torch.arange(1, before.numel() + 1, dtype=before.dtype, device=before.device)
    number = take(table.scatter_(0, before, numbers), after)
    return (number - 1).clamp_(min=0), number > 0


def _numpy_knows(values: Tensor) -> bool:
    return values.device.type == "cpu" and values.dtype in NUMPY_DTYPES


def _as_index(positions: Integers, count: int) -> Tensor:
    narrow = index_dtype(count) == torch.int32
    return torch.from_numpy(positions.astype(np.int32 if narrow else np.int64))


def _indices_on_device(mask: Tensor, live: int) -> Tensor:
    # nonzero() would make the host wait for a count that is already known.
    slots = torch.where(mask, mask.cumsum(0) - 1, live)
    positions = torch.empty(live + 1, dtype=torch.int64, device=mask.device)
    return positions.scatter_(0, slots, torch.arange(mask.numel(), device=mask.device))[:live]
