"""Copies between a tensor and its live entries, faster than torch's where somebody provides them.

Where live entries are is told by one bit an entry: a sixteenth of what a position takes at a
density of a half, and less than half at a tenth. That matters, because a copy only moves memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor

__all__ = ["LiveCopies", "live_copies_for", "provide_live_copies", "word_bits"]

#: Up to so many entries, torch takes no longer than it takes to call anything else.
SMALL: Final = 1 << 12
#: Bytes of an entry.
SIZES: Final = frozenset({2, 4, 8})
#: Bits are read in words of so many.
WORD: Final = 64


class LiveCopies(Protocol):
    """Copies bit by bit; all tensors are 1-D, without gaps, on a CPU, of one size of entries."""

    def gather(
        self,
        bits: Tensor,
        dense: Tensor,
        live: Tensor,
        other: Tensor | None = None,
        other_live: Tensor | None = None,
    ) -> None:
        """Write the live entries of ``dense`` to ``live``, and of ``other`` to ``other_live``."""

    def write(self, bits: Tensor, live: Tensor, dense: Tensor) -> None:
        """Make ``live`` the live entries of ``dense``, and all others zero; each written once."""

    def keep(self, bits: Tensor, dense: Tensor) -> None:
        """Make all entries of ``dense`` zero that are not live."""


#: At most one function; it returns copies if there are some now.
_find: list[Callable[[], LiveCopies | None]] = []


def provide_live_copies(find: Callable[[], LiveCopies | None]) -> None:
    """Have :func:`live_copies_for` ask ``find``, and nobody else, for copies at every call.

    Rooms above have what is faster, and nothing here knows of them.
    """
    _find[:] = [find]


def live_copies_for(*tensors: Tensor) -> LiveCopies | None:
    """Return copies for these tensors; ``None`` where torch has to make them.

    Args:
        tensors: 1-D; the first is the dense one.
    """
    if not _find or tensors[0].numel() <= SMALL:
        return None
    dtype = tensors[0].dtype
    for tensor in tensors:
        if (
            type(tensor) is not Tensor
            or not tensor.is_cpu
            or tensor.dtype != dtype
            or not tensor.is_contiguous()
            or tensor.is_inference()
            or tensor.is_conj()
            or tensor.is_neg()
        ):
            return None
    return _find[0]() if dtype.itemsize in SIZES else None


def word_bits(mask: Tensor) -> Tensor:
    """Pack a 1-D bool tensor on a CPU, least significant bit first, in whole words: uint8.

    Example:
        >>> word_bits(torch.tensor([True, False, True]))
        tensor([5, 0, 0, 0, 0, 0, 0, 0], dtype=torch.uint8)
    """
    packed = np.packbits(mask.numpy(), bitorder="little")
    bits = torch.zeros(-(-mask.numel() // WORD) * WORD // 8, dtype=torch.uint8, device="cpu")
    bits[: packed.size] = torch.from_numpy(packed)
    return bits
