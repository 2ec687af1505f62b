"""Dropout with cheap random numbers."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["drop_entries"]

_VALUES = 1 << 16  # the number of values of a random number of 16 bits


def drop_entries(x: Tensor, p: float, *, inplace: bool = False) -> Tensor:
    """Set entries of a map in the kernels' layout to zero, and scale the others up.

    Each entry is dropped independently with the probability ``p``, rounded to a multiple of 1 in
    65,536. Other entries are divided by the exact probability of staying. Random numbers come from
    torch's generator for the CPU. Four entries share one number of 64 bits, so the draws differ
    from those of :func:`torch.nn.functional.dropout`.

    Args:
        x: (N, C, H, W), in the kernels' layout.
        p: the probability, above 0 and below 1.
        inplace: whether to change ``x`` itself.
    """
    dropped = min(round(p * _VALUES), _VALUES - 1)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device="cpu")
    # Without the lower bound all numbers would be positive.
    drawn = words.random_(-(2**63), None).view(torch.int16)[: x.numel()]
    factors = _factors(drawn.ge_(dropped - _VALUES // 2), _VALUES / (_VALUES - dropped), x.dtype)
    batch, channels, height, width = x.shape
    factors = factors.view(channels, height, width, batch).permute(3, 0, 1, 2)
    return x.mul_(factors) if inplace else x * factors


def _factors(kept: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Return ``scale`` where ``kept`` is 1, else 0; this overwrites ``kept``, which is int16."""
    if dtype.itemsize != kept.element_size():
        return kept.to(dtype).mul_(scale)
    # Multiply the bits of ``scale`` by 0 or 1, because torch's conversion from int16 is slow.
    bits = torch.tensor(scale, dtype=dtype, device="cpu").view(torch.int16).item()
    return kept.mul_(bits).view(dtype)
