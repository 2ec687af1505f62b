"""Exact selection of the largest scores, with deterministic ties and without a full sort."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["largest", "live_indices", "smallest"]


#: One score in so many is looked at to guess where the threshold lies. A prime, so that the guess
#: does not see one kernel position or channel only.
SAMPLE_EVERY: Final = 67
#: Below this many scores a guess does not pay.
SAMPLE_FROM: Final = 1 << 14


def largest(scores: Tensor, k: int, excluded: Tensor | None = None) -> Tensor:
    """Mark the ``k`` largest of ``scores``; ties go to the lowest index, and NaN ranks last.

    The threshold comes from a partial selection (:func:`numpy.partition` on the CPU,
    :func:`torch.topk` elsewhere); nothing is sorted whole, and on an accelerator nothing waits for
    the device.

    Args:
        scores: floating-point scores, shape ``(n,)``.
        k: how many to mark, from 0 to the number of scores that are not excluded.
        excluded: bool, ``(n,)``: scores that are never marked.

    Returns:
        A bool tensor of shape ``(n,)`` on the device of ``scores`` with exactly ``k`` true entries.

    Raises:
        ValueError: if ``k`` is negative or exceeds the number of scores; on the CPU also if it
            exceeds the number of those that are not excluded.

    Example:
        >>> largest(torch.tensor([1.0, 3.0, 3.0, 3.0]), 2)
        tensor([False,  True,  True, False])
    """
    count = scores.numel()
    if not 0 <= k <= count:
        raise ValueError(f"k={k} must be between 0 and the number of scores, {count}.")
    if k == 0:
        return torch.zeros(count, dtype=torch.bool, device=scores.device)
    if k == count:
        return torch.ones(count, dtype=torch.bool, device=scores.device)
    if scores.device.type == "cpu":
        return _largest_on_cpu(scores, k, excluded)
    return _largest_on_device(scores, k, excluded)


def smallest(scores: Tensor, k: int) -> Tensor:
    """Mark the ``k`` smallest of ``scores``; ties go to the lowest index.

    See :func:`largest` for arguments, result and errors.

    Example:
        >>> smallest(torch.tensor([2.0, 1.0, 1.0, 3.0]), 1)
        tensor([False,  True, False, False])
    """
    return largest(scores.neg(), k)


def live_indices(mask: Tensor, live: int) -> Tensor:
    """Return the positions of the ``live`` true entries of a 1-D bool ``mask``, ascending.

    They are int32 where that is wide enough: gathering with int32 takes two thirds of the time of
    int64, and the index half the memory.
    """
    dtype = torch.int32 if mask.numel() <= torch.iinfo(torch.int32).max else torch.int64
    if mask.device.type == "cpu":
        positions = torch.from_numpy(np.flatnonzero(mask.numpy()))
    else:
        positions = _indices_on_device(mask, live)
    return positions.to(dtype)


def _largest_on_cpu(scores: Tensor, k: int, excluded: Tensor | None) -> Tensor:
    scores = scores.detach().contiguous()
    if scores.dtype in (torch.float16, torch.bfloat16):
        # Exact, so ties stay ties; NumPy has no bfloat16 and no fast float16.
        scores = scores.float()
    values = scores.numpy()
    candidates = _candidates(values, k, None if excluded is None else excluded.numpy())
    among = values[candidates]
    if among.size < k:
        raise ValueError(f"k={k} exceeds the {among.size} scores that are not excluded.")
    threshold = np.partition(among, among.size - k)[among.size - k]
    above = among > threshold
    missing = k - np.count_nonzero(above)
    ties = candidates[among == threshold][:missing]
    if ties.size < missing:
        # NumPy ranks NaN first, so it took the place of numbers.
        return _largest_on_cpu(_with_nan_last(scores), k, excluded)
    chosen = np.zeros(values.size, dtype=bool)
    chosen[candidates[above]] = True
    chosen[ties] = True
    return torch.from_numpy(chosen)


def _candidates(
    values: npt.NDArray[Any], k: int, excluded: npt.NDArray[np.bool_] | None
) -> npt.NDArray[np.intp]:
    """Return indices, ascending, among which the ``k`` largest are sure to be.

    A lower bound of the threshold is read off a sample. If at least ``k`` scores reach it, the
    ``k`` largest are among those.
    """
    if values.size >= SAMPLE_FROM and 4 * k < values.size:
        sample = values[::SAMPLE_EVERY]
        if excluded is not None:
            sample = np.where(excluded[::SAMPLE_EVERY], -np.inf, sample)
        rank = min(int(1.2 * k * sample.size / values.size) + 32, sample.size)
        likely = values >= np.partition(sample, sample.size - rank)[sample.size - rank]
        if excluded is not None:
            likely &= ~excluded
        found = np.flatnonzero(likely)
        if found.size >= k:
            return found
    return np.arange(values.size) if excluded is None else np.flatnonzero(~excluded)


def _with_nan_last(scores: Tensor) -> Tensor:
    return torch.where(scores.isnan(), -torch.inf, scores)


def _indices_on_device(mask: Tensor, live: int) -> Tensor:
    # nonzero() would report its count to the host, which knows it already.
    slots = torch.where(mask, mask.cumsum(0) - 1, live)
    positions = torch.empty(live + 1, dtype=torch.int64, device=mask.device)
    return positions.scatter_(0, slots, torch.arange(mask.numel(), device=mask.device))[:live]


def _largest_on_device(scores: Tensor, k: int, excluded: Tensor | None) -> Tensor:
    scores = _with_nan_last(scores)
    if excluded is not None:
        scores = scores.masked_fill(excluded, -torch.inf)
    threshold = torch.topk(scores, k, sorted=False).values.amin()
    chosen = scores > threshold
    ties = scores == threshold
    rank = ties.cumsum(0)
    return chosen | (ties & (rank <= k - chosen.sum()))
