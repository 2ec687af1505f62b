"""Exact selection of the largest scores, of a tensor or of every row, with deterministic ties."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sparseopt.masks.indices import index_dtype, live_indices, mark

__all__ = ["largest", "largest_in_rows", "largest_indices", "smallest"]

Bools: TypeAlias = npt.NDArray[np.bool_]

#: The sample from which the threshold is guessed takes one score in this many. It is a prime, so
#: that the sample does not consist of a single kernel position or channel.
SAMPLE_EVERY: Final = 67
#: Below this many scores a sample costs more time than it saves.
SAMPLE_FROM: Final = 1 << 14


def largest(scores: Tensor, k: int, excluded: Tensor | None = None) -> Tensor:
    """Mark the ``k`` largest of ``scores``; ties go to the lowest index, and NaN ranks last.

    Args:
        scores: floating-point scores, shape ``(n,)``.
        k: how many to mark, from 0 to the number of scores that are not excluded.
        excluded: bool, ``(n,)``: scores that are never marked.

    Returns:
        A bool tensor of shape ``(n,)`` on the device of ``scores`` with exactly ``k`` true entries.

    Raises:
        ValueError: if ``k`` is negative or exceeds the number of scores; on the CPU also if it
            exceeds the number of scores that are not excluded.

    Example:
        >>> largest(torch.tensor([1.0, 3.0, 3.0, 3.0]), 2)
        tensor([False,  True,  True, False])
    """
    _check_count(scores, k)
    if scores.device.type != "cpu":
        return _largest_on_device(scores, k, excluded)
    found, chosen = _largest_on_cpu(scores, k, None if excluded is None else ~excluded.numpy())
    if found is not None:
        return mark(torch.from_numpy(found[chosen]), scores.numel())
    return torch.from_numpy(chosen)


def smallest(scores: Tensor, k: int, excluded: Tensor | None = None) -> Tensor:
    """Mark the ``k`` smallest of ``scores``; ties go to the lowest index.

    See :func:`largest` for arguments, result and errors.

    Example:
        >>> smallest(torch.tensor([2.0, 1.0, 1.0, 3.0]), 1)
        tensor([False,  True, False, False])
    """
    return largest(scores.neg(), k, excluded)


def largest_indices(scores: Tensor, k: int, excluded: Tensor | None = None) -> Tensor:
    """Return the indices of the ``k`` largest of ``scores``, ascending.

    The threshold comes from a partial selection (:func:`numpy.partition` on the CPU,
    :func:`torch.topk` elsewhere), without a full sort. On an accelerator nothing waits for the
    device.

    Args:
        scores: floating-point scores, shape ``(n,)``.
        k: how many to find, from 0 to the number of scores that are not excluded.
        excluded: indices that are never chosen, each once.

    Returns:
        An int32 tensor of shape ``(k,)``, or int64 where int32 is too narrow.

    Raises:
        ValueError: as in :func:`largest`.

    Example:
        >>> largest_indices(torch.tensor([1.0, 3.0, 3.0, 3.0]), 2, torch.tensor([1]))
        tensor([2, 3], dtype=torch.int32)
    """
    _check_count(scores, k)
    count, dtype = scores.numel(), index_dtype(scores.numel())
    if scores.device.type != "cpu":
        left_out = None if excluded is None else mark(excluded, count)
        return live_indices(_largest_on_device(scores, k, left_out), k)
    free = None if excluded is None else ~mark(excluded, count).numpy()
    found, chosen = _largest_on_cpu(scores, k, free)
    indices = np.flatnonzero(chosen) if found is None else found[chosen]
    return torch.from_numpy(indices).to(dtype)


def _check_count(scores: Tensor, k: int) -> None:
    count = scores.numel()
    if not 0 <= k <= count:
        raise ValueError(f"k={k} must be between 0 and the number of scores, {count}.")


def _largest_on_cpu(
    scores: Tensor, k: int, free: Bools | None
) -> tuple[npt.NDArray[np.intp] | None, Bools]:
    """Return candidates for the ``k`` largest scores, and which of the candidates are chosen.

    The threshold is the ``k``-th largest score. All scores above it are chosen. Scores equal to it
    are chosen until there are ``k``, the lowest indices first.

    Args:
        scores: the scores, ``(n,)``.
        k: how many to choose.
        free: which scores may be chosen, ``(n,)``; ``None`` for all.

    Returns:
        The indices of the candidates, ascending, or ``None`` for all indices; and a bool array with
        one entry a candidate.
    """
    scores = scores.detach().contiguous()
    if scores.dtype in (torch.float16, torch.bfloat16):
        # The conversion is exact, so ties stay ties. NumPy has no bfloat16 and no fast float16.
        scores = scores.float()
    values = scores.numpy()
    candidates = _candidates(values, k, free)
    among = values if candidates is None else values[candidates]
    if among.size < k:
        raise ValueError(f"k={k} exceeds the {among.size} scores that are not excluded.")
    if k == 0:
        return candidates, np.zeros(among.size, dtype=bool)
    threshold = _kth_largest(among, k)
    chosen = among > threshold
    missing = k - np.count_nonzero(chosen)
    ties = np.flatnonzero(among == threshold)[:missing]
    if ties.size < missing:
        # NumPy ranks NaN highest, so NaN took the place of numbers.
        return _largest_on_cpu(_with_nan_last(scores), k, free)
    chosen[ties] = True
    return candidates, chosen


def _candidates(
    values: npt.NDArray[Any], k: int, free: Bools | None
) -> npt.NDArray[np.intp] | None:
    """Return ascending indices, the ``k`` largest scores included; ``None`` for all indices.

    A sample gives a guess below the threshold. If at least ``k`` scores reach the guess, it is a
    lower bound of the threshold, and the ``k`` largest are among these scores.
    """
    if values.size >= SAMPLE_FROM and 4 * k < values.size:
        sample = values[::SAMPLE_EVERY]
        if free is not None:
            sample = np.where(free[::SAMPLE_EVERY], sample, -np.inf)
        likely = values >= _ranked(sample, 1.2 * k * sample.size / values.size + 32)
        if free is not None:
            likely &= free
        found = np.flatnonzero(likely)
        if found.size >= k:
            return found
    return None if free is None else np.flatnonzero(free)


def _kth_largest(values: npt.NDArray[Any], k: int) -> Any:
    """Return the ``k``-th largest value, counted from 1.

    A sample gives two bounds between which the value probably lies, and only the values between
    them are partitioned. The counts prove whether it lies there. If it does not, all values
    are partitioned.
    """
    if values.size >= SAMPLE_FROM:
        sample = values[::SAMPLE_EVERY]
        rank = k * sample.size / values.size
        # Four standard deviations of a sample's rank.
        margin = 4.0 * (rank * (1.0 - k / values.size)) ** 0.5 + 4.0
        high, low = _ranked(sample, rank - margin), _ranked(sample, rank + margin)
        above = np.count_nonzero(values > high)
        between = values[(values >= low) & (values <= high)]
        if above < k <= above + between.size:
            return np.partition(between, between.size - (k - above))[between.size - (k - above)]
    return np.partition(values, values.size - k)[values.size - k]


def _ranked(sample: npt.NDArray[Any], rank: float) -> Any:
    """Return the ``rank``-th largest value of ``sample``; the rank is rounded and kept in range."""
    place = sample.size - min(max(int(rank), 1), sample.size)
    return np.partition(sample, place)[place]


def _with_nan_last(scores: Tensor) -> Tensor:
    return torch.where(scores.isnan(), -torch.inf, scores)


def _free(ties: Tensor, excluded: Tensor | None) -> Tensor:
    """Return the ties that may be marked: if the threshold is -inf, excluded scores equal it."""
    return ties if excluded is None else ties & ~excluded


def _largest_on_device(scores: Tensor, k: int, excluded: Tensor | None) -> Tensor:
    """Mark the ``k`` largest scores without waiting for the device.

    All scores above the ``k``-th largest are marked. Scores equal to it are marked by their rank
    among the ties, until there are ``k``.
    """
    if k == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    scores = _with_nan_last(scores)
    if excluded is not None:
        scores = scores.masked_fill(excluded, -torch.inf)
    threshold = torch.topk(scores, k, sorted=False).values.amin()
    chosen = scores > threshold
    ties = _free(scores == threshold, excluded)
    rank = ties.cumsum(0)
    return chosen | (ties & (rank <= k - chosen.sum()))


def largest_in_rows(
    scores: Tensor, counts: Tensor, most: int, excluded: Tensor | None = None
) -> Tensor:
    """Mark the largest scores of every row; ties go to the lowest index, and NaN ranks last.

    Nothing waits for the device.

    Args:
        scores: floating-point scores, ``(rows, columns)``.
        counts: how many to mark in each row, integers, ``(rows,)``; at most the number of scores in
            the row that are not excluded.
        most: at least the largest of ``counts``.
        excluded: bool, ``(rows, columns)``: scores that are never marked.

    Returns:
        A bool tensor of shape ``(rows, columns)`` on the device of ``scores``.

    Example:
        >>> scores = torch.tensor([[1.0, 3.0, 3.0], [2.0, 0.0, 1.0]])
        >>> largest_in_rows(scores, torch.tensor([1, 2]), most=2)
        tensor([[False,  True, False],
                [ True, False,  True]])
    """
    if most == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if scores.dtype in (torch.float16, torch.bfloat16):
        # The conversion is exact, so ties stay ties. Selection in half precision is slow on a CPU.
        scores = scores.float()
    scores = torch.where(scores.isnan(), -torch.inf, scores)
    if excluded is not None:
        scores = scores.masked_fill(excluded, -torch.inf)
    counts = counts.unsqueeze(1)
    best = torch.topk(scores, most, dim=1).values
    # For a count of 0 the threshold is the row's largest score, and no tie is marked.
    threshold = best.gather(1, (counts - 1).clamp(min=0))
    above = scores > threshold
    ties = _free(scores == threshold, excluded)
    missing = counts - above.sum(1, keepdim=True)
    return above | (ties & (ties.cumsum(1) <= missing))
