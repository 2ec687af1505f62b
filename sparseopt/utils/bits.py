"""Bool tensors packed into one bit per weight."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["pack", "popcounts", "unpack"]


def pack(mask: Tensor) -> Tensor:
    """Pack a 1-D bool tensor, most significant bit first: uint8, ``(ceil(n / 8),)``.

    Example:
        >>> pack(torch.tensor([True, False, True]))
        tensor([160], dtype=torch.uint8)
    """
    if mask.device.type == "cpu":
        return torch.from_numpy(np.packbits(mask.contiguous().numpy()))
    return _pack_on_device(mask)


def unpack(bits: Tensor, count: int) -> Tensor:
    """Undo :func:`pack`: bool, ``(count,)``, on the CPU.

    Example:
        >>> unpack(torch.tensor([160], dtype=torch.uint8), 3)
        tensor([ True, False,  True])
    """
    return torch.from_numpy(np.unpackbits(bits.cpu().numpy(), count=count).astype(bool))


def popcounts(packed: Sequence[Tensor]) -> list[int]:
    """Count the set bits of each uint8 tensor; one synchronisation with the device for all.

    Example:
        >>> popcounts([torch.tensor([160, 1], dtype=torch.uint8)])
        [3]
    """
    if not packed:
        return []
    device = packed[0].device
    counts = torch.stack([_bits_set(bits).sum(dtype=torch.int64).to(device) for bits in packed])
    return [int(count) for count in counts.tolist()]


def _bits_set(octets: Tensor) -> Tensor:
    """Count the set bits of each byte: of pairs of bits, of fours, then of all eight.

    These are operators on the device, without synchronisation.
    """
    pairs = octets - ((octets >> 1) & 0x55)
    fours = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    return (fours + (fours >> 4)) & 0x0F


def _pack_on_device(mask: Tensor) -> Tensor:
    octets = pad(mask, (0, -mask.numel() % 8)).view(-1, 8).to(torch.uint8)
    shifts = torch.arange(7, -1, -1, device=mask.device, dtype=torch.uint8)
    return (octets << shifts).sum(1, dtype=torch.uint8)
