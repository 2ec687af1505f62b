"""A tensor of a graph for one input, and which of it another input could change."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Value", "any_along", "closed", "first_along", "is_uniform", "opened"]


@dataclass(frozen=True)
class Value:
    """One tensor of a graph.

    Attributes:
        tensor: what it is for the input at hand.
        open: bool, of its shape: true where another input could make it another.
    """

    tensor: Tensor
    open: Tensor


def closed(tensor: Tensor) -> Value:
    """Return a tensor that no input changes."""
    return Value(tensor, torch.zeros_like(tensor, dtype=torch.bool))


def opened(tensor: Tensor) -> Value:
    """Return a tensor that the input may change everywhere."""
    return Value(tensor, torch.ones_like(tensor, dtype=torch.bool))


def any_along(flags: Tensor, dim: int) -> Tensor:
    """Return for each position along ``dim`` whether any flag is true there."""
    return _rows(flags, dim).any(1)


def first_along(tensor: Tensor, dim: int) -> Tensor:
    """Return for each position along ``dim`` the first value there."""
    return _rows(tensor, dim)[:, 0]


def is_uniform(tensor: Tensor, dim: int) -> Tensor:
    """Return for each position along ``dim`` whether all values there are equal, up to rounding."""
    rows = _rows(tensor, dim)
    if not rows.is_floating_point():
        return (rows == rows[:, :1]).all(1)
    return torch.isclose(rows, rows[:, :1], rtol=1e-5, atol=1e-7).all(1)


def _rows(tensor: Tensor, dim: int) -> Tensor:
    return tensor.movedim(dim, 0).reshape(tensor.shape[dim], -1)
