"""Codes for the positions of live weights, in few bytes.

``bits``: one bit for each weight, in row-major order, from the lowest bit of each byte.

``gaps``: for each live weight, the number of dropped weights since the last live weight. A gap is
the sum of its bytes: a byte of 255 continues the gap, and a smaller byte ends it. Most gaps take
one byte, so ``gaps`` is smaller than ``bits`` below a density of about an eighth.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor

__all__ = ["CODES", "decode", "encode"]

CODES: Final = ("bits", "gaps")
_MORE: Final = 255


def encode(positions: Tensor, size: int) -> tuple[str, Tensor]:
    """Return the name of the smaller code, and the code.

    Args:
        positions: positions of the live weights, 1-D, ascending.
        size: the number of weights.

    Example:
        >>> encode(torch.tensor([2, 3]), 8)
        ('bits', tensor([12], dtype=torch.uint8))
        >>> encode(torch.tensor([5, 300]), 400)
        ('gaps', tensor([  5, 255,  39], dtype=torch.uint8))
    """
    places = positions.cpu().numpy()
    gaps = np.diff(places, prepend=-1) - 1
    more = gaps // _MORE
    length = len(gaps) + int(more.sum())
    if length >= (size + 7) // 8:
        mask = np.zeros(size, dtype=bool)
        mask[places] = True
        return "bits", torch.from_numpy(np.packbits(mask, bitorder="little"))
    code = np.full(length, _MORE, dtype=np.uint8)
    code[np.cumsum(more + 1) - 1] = gaps % _MORE
    return "gaps", torch.from_numpy(code)


def decode(name: str, code: Tensor, size: int) -> Tensor:
    """Return the positions that :func:`encode` was given: int64, ascending.

    Raises:
        ValueError: if it is not a code for ``size`` weights.

    Example:
        >>> decode("gaps", torch.tensor([5, 255, 39], dtype=torch.uint8), 400)
        tensor([  5, 300])
    """
    values = code.numpy()
    if name == "bits":
        if len(values) != (size + 7) // 8:
            raise ValueError(f"{len(values)} bytes do not have one bit for each of {size} weights")
        bits = np.unpackbits(values, bitorder="little")
        if bits[size:].any():
            raise ValueError(f"a bit is set after the last of {size} weights")
        return torch.from_numpy(np.flatnonzero(bits))
    if len(values) and values[-1] == _MORE:
        raise ValueError("the last gap does not end")
    ends = values != _MORE
    places = np.cumsum(values, dtype=np.int64)[ends] + np.arange(int(ends.sum()))
    if len(places) and places[-1] >= size:
        raise ValueError(f"a gap ends after the last of {size} weights")
    return torch.from_numpy(places)
