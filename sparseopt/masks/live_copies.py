"""Copies between a tensor and its live entries, by kernels where a room above provides some.

One bit an entry says whether the entry is live. At a density of a half that is a sixteenth of the
memory of positions, and at a tenth less than half. It matters because a copy only moves memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import numpy as np
import torch
from torch import Tensor

__all__ = ["LiveCopies", "live_copies_for", "provide_live_copies", "word_bits"]

#: Up to this many entries, torch takes no longer than the call of a kernel.
SMALL: Final = 1 << 12
#: The sizes of an entry that the kernels support, in bytes.
SIZES: Final = frozenset({2, 4, 8})
#: Bits in a word.
WORD: Final = 64


class LiveCopies(Protocol):
    """Copies of live entries. All tensors are 1-D, without gaps, on a CPU, and of one dtype."""

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
        """Make ``live`` the live entries of ``dense``, and all others zero; write each once."""

    def keep(self, bits: Tensor, dense: Tensor) -> None:
        """Set all entries of ``dense`` that are not live to zero."""


#: At most one function, which returns the kernels if they can be used now.
_find: list[Callable[[], LiveCopies | None]] = []


def provide_live_copies(find: Callable[[], LiveCopies | None]) -> None:
    """Make :func:`live_copies_for` call ``find`` for the kernels, in place of any earlier function.

    The kernels are in a room above this one, which this room must not import.
    """
    _find[:] = [find]


def live_copies_for(*tensors: Tensor) -> LiveCopies | None:
    """Return the kernels if they can copy these tensors; ``None`` where torch has to copy them.

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
