"""What the memory gives, and how much of it live weights ask for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.overhead.timing import Sample, seconds

#: A line of the cache, in float32 weights: what the memory sends if any of them is asked for.
LINE = 16


class Memory:
    """Reads and copies as many bytes as the parameters have, with all of torch's threads.

    Args:
        count: Float32 numbers.
        device: Where they are.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self._numbers = torch.ones(count, device=device)
        self._others = torch.zeros(count, device=device)
        self._device = device

    def __call__(self, _: int) -> Sample:
        """Return the seconds of either."""
        return {
            "read": seconds(self._numbers.sum, self._device),
            "copy": seconds(lambda: self._others.copy_(self._numbers), self._device),
        }


def lines_touched(masks: dict[str, Tensor]) -> float:
    """Return the share of the cache lines of sparse weights in which any weight is live.

    Example:
        >>> mask = torch.zeros(64, dtype=torch.bool)
        >>> mask[[0, 1, 40]] = True
        >>> lines_touched({"layer": mask})
        0.5
    """
    touched = total = 0
    for mask in masks.values():
        flat = mask.reshape(-1).to(torch.uint8)
        lines = nn.functional.pad(flat, (0, -flat.numel() % LINE)).view(-1, LINE)
        touched += int(lines.any(1).sum())
        total += lines.shape[0]
    return touched / total
