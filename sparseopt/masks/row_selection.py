"""Exact selection of the largest scores in each row of a matrix, with deterministic ties."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["largest_in_rows"]


def largest_in_rows(
    scores: Tensor, counts: Tensor, most: int, excluded: Tensor | None = None
) -> Tensor:
    """Mark the largest scores of every row; ties go to the lowest index, and NaN ranks last.

    Nothing waits for the device.

    Args:
        scores: floating-point scores, ``(rows, columns)``.
        counts: how many to mark in each row, whole numbers, ``(rows,)``, none above the number of
            scores of that row that are not excluded.
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
        # Exact, so ties stay ties; selection in half precision is slow on a CPU.
        scores = scores.float()
    scores = torch.where(scores.isnan(), -torch.inf, scores)
    if excluded is not None:
        scores = scores.masked_fill(excluded, -torch.inf)
    counts = counts.unsqueeze(1)
    best = torch.topk(scores, most, dim=1).values
    # A row that marks none has its largest score for a threshold, and no tie is taken.
    threshold = best.gather(1, (counts - 1).clamp(min=0))
    above = scores > threshold
    ties = scores == threshold
    missing = counts - above.sum(1, keepdim=True)
    return above | (ties & (ties.cumsum(1) <= missing))
