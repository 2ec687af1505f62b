"""Whether anybody else has written to a weight since its dropped entries were made zero."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from sparseopt.masks.indices import mark

__all__ = ["WriteWatch"]

#: Up to so many entries, writing all of them costs no more than finding out.
SMALL: Final = 1 << 12
#: Dropped entries that are looked at.
LOOKED_AT: Final = 64
#: Questions after which one is answered by no in any case.
NO_EVERY: Final = 100


class WriteWatch:
    """Notices, for little, when somebody else wrote to a weight.

    Autograd counts what is written to a tensor, but not what is written through ``.data``. Where no
    device has to be waited for, some of the dropped entries are looked at as well; and now and then
    the answer is that somebody did, so that what was not noticed does not last.
    """

    def __init__(self) -> None:
        self._noted: tuple[int, int] | None = None
        self._asked = 0
        self._sample: Tensor | None = None

    def note(self, weight: Tensor) -> None:
        """Note that the dropped entries of ``weight`` are zero now."""
        self._noted = weight.data_ptr(), weight._version

    def forget(self) -> None:
        """Forget what was noted, for other entries may be dropped now."""
        self._noted = self._sample = None

    def is_untouched(self, weight: Tensor, flat: Tensor, offsets: Tensor) -> bool:
        """Whether the dropped entries still are zero, as far as can be told for little.

        Args:
            weight: the weight.
            flat: its entries in one dimension.
            offsets: where in ``flat`` the live ones are.
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
    # Not from the generator of masks and growth: what is looked at changes no result.
    generator = torch.Generator().manual_seed(0)
    tried = torch.randint(count, (4 * LOOKED_AT,), generator=generator, device="cpu")
    return tried[~mark(offsets, count)[tried]][:LOOKED_AT].clone()
