"""Outputs in the memory order in which the model returned them, whatever layout its maps have.

Code that reads the outputs may call ``view``. This takes a contiguous tensor, and does not take a
view of a map in the kernels' layout or in channels-last format, such as ``y.flatten(2)``.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from sparseopt.speedup.kernels.calls import standard_layout
from sparseopt.speedup.live_training.layout import in_kernel_layout
from sparseopt.utils.nested import map_leaves
from sparseopt.utils.tensors import is_strided

__all__ = ["MemoryOrder", "in_memory_orders", "memory_orders"]

#: How memory holds an output: ``"contiguous"``, in the order of its dimensions but with ``"gaps"``,
#: or in an ``"other"`` order. What is no tensor has an ``"other"`` order.
MemoryOrder: TypeAlias = Literal["contiguous", "gaps", "other"]


def memory_orders(outputs: Any) -> tuple[MemoryOrder, ...]:
    """Return the memory order of each leaf of a model's outputs.

    Example:
        >>> x = torch.ones(2, 3, 4)
        >>> memory_orders([x, {"first": x[:, 0], "turned": x.mT}])
        ('contiguous', 'gaps', 'other')
    """
    return tuple(map(_order, _leaves(outputs)))


def in_memory_orders(outputs: Any, orders: tuple[MemoryOrder, ...]) -> Any:
    """Return the outputs of a copy of a model in the memory orders of the model's own outputs.

    An output that is in its order already stays the same object, and so does an output whose
    order is ``"other"``. If the model returned another number of outputs, it is not known which
    is which, so all are in the order of their dimensions, with or without gaps.
    """
    if isinstance(outputs, Tensor) and len(orders) == 1:
        return _in_order(outputs, orders[0])  # walking through nested outputs takes longer
    count = len(_leaves(outputs))
    unknown: MemoryOrder = "gaps"
    given = iter(orders if len(orders) == count else (unknown,) * count)
    return map_leaves(lambda leaf: _in_order(leaf, next(given)), outputs)


def _leaves(outputs: Any) -> list[Any]:
    """Return the leaves in the order of ``map_leaves``."""
    found: list[Any] = []

    def keep(leaf: Any) -> Any:
        found.append(leaf)
        return leaf

    map_leaves(keep, outputs)
    return found


def _order(leaf: Any) -> MemoryOrder:
    if not is_strided(leaf):
        return "other"
    if leaf.is_contiguous():
        return "contiguous"
    strides = _strides(leaf)
    # An expanded tensor has more entries than its memory, so it stays a view.
    return "gaps" if _descend(strides) and 0 not in strides else "other"


def _strides(x: Tensor) -> list[int]:
    """Return the strides of the dimensions of more than one entry."""
    return [stride for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1]


def _descend(strides: list[int]) -> bool:
    return all(outer >= inner for outer, inner in pairwise(strides))


def _in_order(leaf: Any, order: MemoryOrder) -> Any:
    if order == "other" or not is_strided(leaf):
        return leaf
    x: Tensor = leaf
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return x.contiguous()  # comparisons of sizes would bind the program to these sizes
    if x.is_contiguous():
        return x
    if order == "gaps":
        strides = _strides(x)
        # One channel of a map in channels-last format has gaps between all of its entries.
        if _descend(strides) and strides[-1:] in ([], [1]):
            return x
    return standard_layout(x) if in_kernel_layout(x) else x.contiguous()
