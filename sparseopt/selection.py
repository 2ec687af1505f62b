"""Exact selection of the largest scores, with deterministic ties and without a full sort."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["largest", "live_indices", "smallest"]


def largest(scores: Tensor, k: int) -> Tensor:
    """Mark the ``k`` largest of ``scores``; ties go to the lowest index.

    The threshold comes from a partial selection (:func:`numpy.partition` on the CPU,
    :func:`torch.topk` elsewhere); nothing is sorted whole, and on an accelerator nothing waits for
    the device.

    Args:
        scores: floating-point scores, shape ``(n,)``.
        k: how many to mark, from 0 to ``n``.

    Returns:
        A bool tensor of shape ``(n,)`` on the device of ``scores`` with exactly ``k`` true entries.

    Raises:
        ValueError: if ``k`` is out of range, or on the CPU if NaN scores make the ``k`` largest
            undefined.

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
        return _largest_on_cpu(scores, k)
    return _largest_on_device(scores, k)


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


def _largest_on_cpu(scores: Tensor, k: int) -> Tensor:
    scores = scores.detach().contiguous()
    if scores.dtype in (torch.float16, torch.bfloat16):
        # Exact, so ties stay ties; NumPy has no bfloat16 and no fast float16.
        scores = scores.float()
    values = scores.numpy()
    threshold = np.partition(values, values.size - k)[values.size - k]
    if np.isnan(threshold):
        raise ValueError(f"the {k} largest scores are undefined: the scores contain NaN.")
    chosen = values > threshold
    ties = np.flatnonzero(values == threshold)
    chosen[ties[: k - np.count_nonzero(chosen)]] = True
    return torch.from_numpy(chosen)


def _indices_on_device(mask: Tensor, live: int) -> Tensor:
    # nonzero() would report its count to the host, which knows it already.
    slots = torch.where(mask, mask.cumsum(0) - 1, live)
    positions = torch.empty(live + 1, dtype=torch.int64, device=mask.device)
    return positions.scatter_(0, slots, torch.arange(mask.numel(), device=mask.device))[:live]


def _largest_on_device(scores: Tensor, k: int) -> Tensor:
    threshold = torch.topk(scores, k, sorted=False).values.amin()
    chosen = scores > threshold
    ties = scores == threshold
    rank = ties.cumsum(0)
    return chosen | (ties & (rank <= k - chosen.sum()))
