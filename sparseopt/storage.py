"""Where the entries of a tensor lie in memory, and where in its logical order."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

__all__ = [
    "clear_",
    "fills_its_memory",
    "in_storage_order",
    "logical_positions",
    "storage_offsets",
]


def in_storage_order(tensor: Tensor) -> Tensor:
    """Return a 1-D view of a tensor that :func:`fills_its_memory`, entries as they lie in memory.

    Example:
        >>> in_storage_order(torch.tensor([[1, 2], [3, 4]]).t())
        tensor([1, 2, 3, 4])
    """
    return tensor.view(-1) if tensor.is_contiguous() else tensor.as_strided((tensor.numel(),), (1,))


def clear_(tensor: Tensor) -> None:
    """Make a tensor that :func:`fills_its_memory` zero, on a CPU without torch's own threads.

    Example:
        >>> values = torch.tensor([1.0, float("nan")])
        >>> clear_(values)
        >>> values
        tensor([0., 0.])
    """
    if tensor.device.type == "cpu":
        in_storage_order(tensor).view(torch.uint8).numpy().fill(0)
    else:
        tensor.zero_()


@lru_cache(maxsize=4096)
def fills_its_memory(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether a tensor of these strides fills its memory without gaps or overlaps.

    Example:
        >>> fills_its_memory((2, 3), (1, 2)), fills_its_memory((2, 3), (6, 2))
        (True, False)
    """
    expected = 1
    for step, size in sorted(zip(stride, shape, strict=True)):
        if size == 1:
            continue
        if step != expected:
            return False
        expected *= size
    return True


def storage_offsets(positions: Tensor, shape: torch.Size, stride: tuple[int, ...]) -> Tensor:
    """Return where the entries at logical ``positions`` lie in memory.

    Example:
        >>> storage_offsets(torch.tensor([0, 1, 2]), torch.Size((2, 2)), (1, 2))
        tensor([0, 2, 1])
    """
    remainder = positions
    offsets = torch.zeros_like(positions)
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        offsets += remainder % size * step
        remainder = remainder // size
    return offsets


def logical_positions(offsets: Tensor, shape: torch.Size, stride: tuple[int, ...]) -> Tensor:
    """Undo :func:`storage_offsets`.

    Example:
        >>> logical_positions(torch.tensor([0, 2, 1]), torch.Size((2, 2)), (1, 2))
        tensor([0, 1, 2])
    """
    positions = torch.zeros_like(offsets)
    logical = 1
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        positions += offsets // step % size * logical
        logical *= size
    return positions
