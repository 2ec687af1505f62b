"""Detects whether other code has written to a weight since its dropped entries became zero."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from sparseopt.masks.indices import mark

__all__ = ["WriteWatch"]

#: Up to this many entries, writing all of them costs no more than the check.
SMALL: Final = 1 << 12
#: Number of dropped entries in the sample.
LOOKED_AT: Final = 64
#: One check in this many answers no in any case.
NO_EVERY: Final = 100


class WriteWatch:
    """A cheap check of whether other code wrote to a weight.

    Autograd counts the writes to a tensor, but not the writes through ``.data``. So on a CPU, where
    that costs no wait for a device, the check also reads a sample of the dropped entries. One check
    in a hundred answers no in any case, so that a write that was missed is cleaned up before long.
    """

    def __init__(self) -> None:
        self._noted: tuple[int, int] | None = None
        self._asked = 0
        self._sample: Tensor | None = None

    def note(self, weight: Tensor) -> None:
        """Note that the dropped entries of ``weight`` are zero now."""
        self._noted = weight.data_ptr(), weight._version

    def forget(self) -> None:
        """Forget the last note: other entries may be dropped now."""
        self._noted = self._sample = None

    def is_untouched(self, weight: Tensor, flat: Tensor, offsets: Tensor) -> bool:
        """Whether the dropped entries are still zero, as far as a cheap check can tell.

        Args:
            weight: the weight.
            flat: its entries in one dimension.
            offsets: the indices of the live entries in ``flat``.
        """
        if flat.numel() <= SMALL or self._noted != (weight.data_ptr(), weight._version):
            return False
        self._asked += 1
        if self._asked % NO_EVERY == 0:
            return False
        if not flat.is_cpu:
            return True
        if self._sample is None:
            self._sample = _some_dropped(offsets, flat.numel())
        return not bool(flat.index_select(0, self._sample).any())


def _some_dropped(offsets: Tensor, count: int) -> Tensor:
    # A generator of its own: the choice of the sample must not change masks or growth.
    generator = torch.Generator().manual_seed(0)
    tried = torch.randint(count, (4 * LOOKED_AT,), generator=generator, device="cpu")
    return tried[~mark(offsets, count)[tried]][:LOOKED_AT].clone()
