"""Where the entries of a tensor lie in memory, and how they are overwritten in place."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np
import torch
from torch import Tensor

from sparseopt.distributed.dtensor import is_sharded

__all__ = ["Layout", "clear_", "fill_where_false_", "write_only_"]

#: Up to this many entries, torch clears a tensor in one thread.
ONE_THREAD: Final = 1 << 15
#: Entries that are prepared in a buffer and then written together: few enough to stay in the cache.
BLOCK: Final = 1 << 17


class Layout:
    """The order in which the entries of a tensor lie in memory, without regard to gaps.

    Args:
        tensor: the tensor. If it is sharded, the order is the logical order of the full tensor.

    Example:
        >>> columns = torch.tensor([[1, 2], [3, 4]]).t()
        >>> Layout(columns).flat(columns)
        tensor([1, 2, 3, 4])
    """

    def __init__(self, tensor: Tensor) -> None:
        if is_sharded(tensor):
            like = torch.empty(tensor.shape, device="meta")
        else:
            like = torch.empty_like(tensor, device="meta", requires_grad=False)
        self.shape = like.shape
        self.stride = like.stride()
        self.is_logical = like.is_contiguous()

    def has(self, tensor: Tensor) -> bool:
        """Whether ``tensor``, of this shape, lies in memory in this order and without gaps."""
        return tensor.is_contiguous() if self.is_logical else tensor.stride() == self.stride

    def flat(self, tensor: Tensor) -> Tensor:
        """Return the entries of ``tensor`` in this order, 1-D; a view if they lie in this order."""
        if self.is_logical:
            return tensor.contiguous().view(-1)
        if tensor.stride() != self.stride:
            tensor = tensor.new_empty_strided(self.shape, self.stride).copy_(tensor)
        return tensor.as_strided((tensor.numel(),), (1,))

    def shaped(self, flat: Tensor) -> Tensor:
        """Return a view, of this shape, of a 1-D tensor whose entries are in this order."""
        return (
            flat.view(self.shape) if self.is_logical else flat.as_strided(self.shape, self.stride)
        )

    def put_back_(self, tensor: Tensor, flat: Tensor) -> None:
        """Copy the result ``flat`` of :meth:`flat` back to ``tensor``.

        If ``flat`` is a view of ``tensor``, nothing is copied.
        """
        if not self.has(tensor):
            tensor.copy_(self.shaped(flat))

    def offsets(self, positions: Tensor) -> Tensor:
        """Return the indices, in this order, of the entries at logical ``positions``.

        Example:
            >>> Layout(torch.zeros(2, 2).t()).offsets(torch.tensor([0, 1, 2]))
            tensor([0, 2, 1])
        """
        if self.is_logical:
            return positions
        remainder = positions
        offsets = torch.zeros_like(positions)
        for size, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            offsets += remainder % size * step
            remainder = remainder // size
        return offsets

    def positions(self, offsets: Tensor) -> Tensor:
        """Undo :meth:`offsets`."""
        if self.is_logical:
            return offsets
        positions = torch.zeros_like(offsets)
        logical = 1
        for size, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            positions += offsets // step % size * logical
            logical *= size
        return positions


def clear_(flat: Tensor) -> None:
    """Set a 1-D tensor without gaps to zero; on a CPU without torch's threads.

    Example:
        >>> values = torch.tensor([1.0, float("nan")])
        >>> clear_(values)
        >>> values
        tensor([0., 0.])
    """
    if flat.is_cpu and flat.numel() > ONE_THREAD:
        flat.view(torch.uint8).numpy().fill(0)
    else:
        flat.zero_()


def write_only_(flat: Tensor, offsets: Tensor, values: Tensor, *, ascending: bool) -> None:
    """Make ``values`` the entries of a 1-D tensor at ``offsets``, and all others zero.

    Every entry is written once, so that another thread reads either its old or its final value.

    Args:
        flat: the tensor, without gaps.
        offsets: the index of each value.
        values: what to write, of the shape of ``offsets``.
        ascending: whether the offsets are ascending.

    Example:
        >>> weights = torch.tensor([1.0, float("nan"), 3.0])
        >>> write_only_(weights, torch.tensor([0, 2]), torch.tensor([4.0, 5.0]), ascending=True)
        >>> weights
        tensor([4., 0., 5.])
    """
    if not (flat.is_cpu and ascending) or flat.numel() <= BLOCK:
        flat.copy_(torch.zeros_like(flat).scatter_(0, offsets, values))
        return
    starts = range(0, flat.numel(), BLOCK)
    bounds = [*np.searchsorted(offsets.numpy(), starts).tolist(), offsets.numel()]
    aside = flat.new_empty(BLOCK)
    for start, (first, last) in zip(starts, pairwise(bounds), strict=True):
        block = flat[start : start + BLOCK]
        final = aside[: block.numel()]
        clear_(final)
        final.scatter_(0, offsets[first:last] - start, values[first:last])
        block.copy_(final)


INTEGERS: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fill_where_false_(tensor: Tensor, mask: Tensor, fill: float) -> None:
    """Write ``fill`` into ``tensor`` wherever ``mask``, bool and of its shape, is false.

    Nothing is multiplied, so NaN and infinities are overwritten too.

    Example:
        >>> weights = torch.tensor([1.0, float("nan"), 3.0])
        >>> fill_where_false_(weights, torch.tensor([True, False, True]), 0.0)
        >>> weights
        tensor([1., 0., 3.])
    """
    if tensor.grad_fn is not None:
        # With differentiable=True this is one more operation of the step's graph.
        with torch.enable_grad():
            tensor.masked_fill_(~mask, fill)
        return
    tensor = tensor.detach()
    if fill == 0.0 and tensor.device.type == "cpu":
        # On a CPU masked_fill_() branches at every entry; an AND of the bits does not.
        integer = INTEGERS[tensor.element_size()]
        all_bits = mask.view(torch.int8).to(integer, copy=True).neg_()
        tensor.view(integer).bitwise_and_(all_bits)
    else:
        tensor.masked_fill_(~mask, fill)
