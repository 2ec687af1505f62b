"""Where the live weights of a layer are, in few bytes.

``bits``: one bit for each weight in row-major order, the first in the lowest bit of a byte.
``gaps``: for each live weight the number of weights since the one before, in bytes: 255 means "255,
and more follows", any other value ends the gap. One byte a live weight, mostly, so that gaps are
smaller below a density of about an eighth.
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
    """Return the smaller of both codes, by name.

    Args:
        positions: ascending, 1-D, of the live ones among ``size`` weights.
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
        ValueError: if the code is not one of ``size`` weights.

    Example:
        >>> decode("gaps", torch.tensor([5, 255, 39], dtype=torch.uint8), 400)
        tensor([  5, 300])
    """
    values = code.numpy()
    if name == "bits":
        if len(values) != (size + 7) // 8:
            raise ValueError(f"{len(values)} bytes are no bits of {size} weights")
        bits = np.unpackbits(values, bitorder="little")
        if bits[size:].any():
            raise ValueError(f"a bit is set behind the last of {size} weights")
        return torch.from_numpy(np.flatnonzero(bits))
    if len(values) and values[-1] == _MORE:
        raise ValueError("the last gap does not end")
    ends = values != _MORE
    places = np.cumsum(values, dtype=np.int64)[ends] + np.arange(int(ends.sum()))
    if len(places) and places[-1] >= size:
        raise ValueError(f"a gap ends behind the last of {size} weights")
    return torch.from_numpy(places)
