"""Whether two models compute the same, seen from their outputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

__all__ = ["disagreement"]


def disagreement(expected: Any, found: Any) -> str | None:
    """Return how the outputs of one model differ from those of another, or ``None``.

    Floating-point tensors are compared, in whatever they are nested. Infinite and NaN entries have
    to be the same; the finite ones to about the square root of the precision of their type, in
    proportion to the largest of them.

    Args:
        expected: outputs of the one model.
        found: those of the other.

    Returns:
        What follows "the output" in a sentence, for example ``"is 0.5 off, of values up to 2"``.
    """
    before, after = tree_leaves(expected), tree_leaves(found)
    if len(before) != len(after):
        return f"has {len(after)} parts and not {len(before)}"
    pairs = zip(before, after, strict=True)
    differences = (_difference(*pair) for pair in pairs if _is_compared(pair[0]))
    return next((one for one in differences if one is not None), None)


def _is_compared(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _difference(before: Tensor, after: Tensor) -> str | None:
    if before.shape != after.shape:
        return f"has the shape {tuple(after.shape)} and not {tuple(before.shape)}"
    finite = before.isfinite() & after.isfinite()
    same = (before == after) | (before.isnan() & after.isnan())
    if not bool((finite | same).all()):
        return "is infinite or NaN in other places"
    before, after = before[finite], after[finite]
    if not before.numel():
        return None
    scale = before.abs().max().item()
    apart = (before - after).abs().max().item()
    if apart <= torch.finfo(before.dtype).eps ** 0.5 * max(scale, 1e-3):
        return None
    return f"is {apart:.3g} off, of values up to {scale:.3g}"
