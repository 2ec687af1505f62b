"""Checks that all ranks make the same choice from the same weights and gradients.

A method that draws from a random generator of its own, or from torch's, chooses differently on each
rank. From then on the ranks would average the gradients of different networks. No rank waits for
another one here, because ranks may train independently of each other. The first rank to arrive
leaves a digest of its choice in the store of the process group, and the other ranks compare their
own digests with it. The key in the store is a digest of the weights and gradients, so ranks that
see different ones are not compared.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from sparseopt.distributed.ranks import from_rank_zero, is_distributed
from sparseopt.utils.errors import RankMismatchError

__all__ = ["SameChoice", "checksum", "mixed"]

#: Odd, so that multiplication modulo 2**64 is one to one; from the golden ratio, so that products
#: spread over all 64 bits.
MULTIPLIER: Final = 0x9E3779B97F4A7C15 - 2**64
INTEGERS: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
#: How often this process has made each choice, by its key in the store. Only choices with equal
#: counts are compared: after a checkpoint is loaded again, or in a copy of the optimizer, a method
#: may choose differently the second time, on all ranks alike.
_times: Final[Counter[str]] = Counter()


def checksum(values: Tensor) -> Tensor:
    """Return the sum of the bit patterns of ``values``: an integer, 0-dimensional, on their device.

    It does not depend on the order of the values.

    Example:
        >>> int(checksum(torch.tensor([1.0, 2.0])) == checksum(torch.tensor([2.0, 1.0])))
        1
    """
    bits = values.detach().view(INTEGERS[values.element_size()])
    return bits.sum(dtype=torch.int64)


class SameChoice:
    """Compares the choices of the ranks of one run. Collective: all ranks create it together."""

    def __init__(self) -> None:
        self._run: str = from_rank_zero(secrets.token_hex(8))

    def require(
        self,
        about: Sequence[Any],
        seen: Sequence[Tensor],
        chosen: Sequence[Tensor],
        *,
        message: str,
    ) -> None:
        """Raise if another rank saw the same values and chose differently, or has other values.

        This waits for the device once.

        Args:
            about: plain values that identify the choice, such as the step and the names of layers.
            seen: checksums of the tensors that the choice depends on.
            chosen: checksums of the choice.
            message: the message of the error.

        Raises:
            RankMismatchError: if another rank chose differently.
        """
        if not is_distributed() or not chosen:
            return
        device = chosen[0].device
        sums = torch.stack([value.to(device) for value in (*seen, *chosen)]).tolist()
        key = _digest((*about, *sums[: len(seen)]))
        mine = _digest(sums[len(seen) :])
        # Checked with torch 2.8 to 2.14: torch has no public function that returns the store.
        store = dist.distributed_c10d._get_default_store()
        place = f"sparseopt/{self._run}/{key}"
        _times[place] += 1
        first = store.compare_set(f"{place}/{_times[place]}", "", mine).decode()
        if first != mine:
            raise RankMismatchError(message)


def mixed(whole_numbers: Tensor) -> Tensor:
    """Spread integers over 64 bits, so that different sets of them have different sums."""
    spread = (whole_numbers.long() + 1) * MULTIPLIER
    return (spread ^ (spread >> 29)) * MULTIPLIER


def _digest(values: Sequence[Any]) -> str:
    return hashlib.sha256(repr(tuple(values)).encode()).hexdigest()[:32]
