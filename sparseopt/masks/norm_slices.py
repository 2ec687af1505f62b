"""Keeps a live weight in every slice of a weight under weight norm.

Under weight norm a weight is computed as ``g * v / ||v||``, with one norm for each slice of ``v``
(each filter of a convolution). ``v`` is what becomes sparse. A slice of zeros would be 0 / 0, so
every slice has a live weight that is not zero, from the first step to the last.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.weight_norm import WeightNorm

from sparseopt.distributed.dtensor import full_tensor
from sparseopt.masks.indices import take
from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.topk import largest_in_rows

__all__ = [
    "check_counts",
    "described",
    "left_zero",
    "normed_dimensions",
    "normed_dimensions_of_groups",
    "protected",
    "slices_without",
    "with_best_first",
]

#: The dimension that weight norm gives if the full tensor is one slice.
WHOLE: Final = -1
#: How many slices an error lists.
MOST_SLICES: Final = 5


def normed_dimensions(model: nn.Module) -> dict[Tensor, int]:
    """Return each parameter under weight norm, with the dimension along which it has slices.

    -1 stands for one norm of the full parameter.

    Example:
        >>> from torch.nn.utils.parametrizations import weight_norm
        >>> convolution = weight_norm(nn.Conv1d(4, 8, 3))
        >>> list(normed_dimensions(convolution).values())
        [0]
    """
    found: dict[Tensor, int] = {}
    for module in model.modules():
        if isinstance(module, ParametrizationList) and isinstance(module[0], _WeightNorm):
            found[cast(Tensor, module.original1)] = module[0].dim
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                found[getattr(module, f"{hook.name}_v")] = hook.dim
    return {weight: dim if dim == WHOLE else dim % weight.dim() for weight, dim in found.items()}


def normed_dimensions_of_groups(groups: Iterable[Mapping[str, Any]]) -> dict[Tensor, int]:
    """Do the same as :func:`normed_dimensions` by shapes, where no model is known.

    The magnitudes ``g`` come just before ``v`` in a group. Their shape is 1 in every dimension
    except one, where it equals the shape of ``v``.
    """
    return {
        weight: dim
        for group in groups
        for magnitudes, weight in itertools.pairwise(group["params"])
        for dim in range(weight.dim() if weight.dim() > 1 else 0)
        if magnitudes.shape == _shape_of_norms(weight, dim) and weight.shape[dim] > 1
    }


def check_counts(name: str, shape: tuple[int, ...], dim: int, live: int) -> None:
    """Raise :class:`ValueError` unless ``live`` weights are enough for one in every slice."""
    slices = 1 if dim == WHOLE else shape[dim]
    if live < slices:
        raise ValueError(
            f"layer {name!r} would have {live} live weights, but weight norm divides each of its "
            f"{slices} slices along dimension {dim} by its norm, and a slice without a live weight "
            f"would be NaN: give the layer a density of {slices / math.prod(shape):.3g} or more, "
            f"init={{{name!r}: ..., '*': 'erk'}}, or leave it dense. (Without a model, weight norm "
            "is inferred from shapes: pass the model if it has no weight norm.)"
        )


def with_best_first(scores: Tensor, weight: Tensor, dim: int) -> Tensor:
    """Return scores of the weight's shape in which the best of every slice is infinite.

    A weight of zero is the best only in a slice whose weights are all zero.
    """
    rows = _rows(torch.where(weight.to(scores.device) != 0, scores, -torch.inf), dim)
    ones = torch.ones(rows.shape[0], dtype=torch.long, device=rows.device)
    best = largest_in_rows(rows, ones, most=1)
    return scores.masked_fill(_from_rows(best, scores, dim), torch.inf)


def slices_without(flags: Tensor, dim: int) -> list[int]:
    """Return the numbers of the slices of ``flags``, a bool tensor, in which no entry is true."""
    empty: list[int] = (~_rows(flags, dim).any(1)).nonzero().flatten().tolist()
    return empty


def protected(layer: SparseLayer) -> Tensor | None:
    """Return which live weights may not drop: the largest of every slice, bool, ``(live,)``.

    Among equally large weights it is the first. The result is ``None`` without weight norm.
    Collective if the layer is sharded.
    """
    if layer.norm_dim is None:
        return None
    slice_of = _slice_of(layer.positions(), layer.weight, layer.norm_dim)
    size = layer.gather(layer.weight).abs()
    # Selection in half precision is slow, or lacks a kernel.
    size = size.to(torch.promote_types(size.dtype, torch.float32))
    largest = size.new_zeros(layer.norm_slices).scatter_reduce_(0, slice_of, size, "amax")
    place = torch.arange(layer.live, device=size.device)
    place = torch.where(size == largest[slice_of], place, layer.live)
    first = place.new_full((layer.norm_slices,), layer.live)
    first.scatter_reduce_(0, slice_of, place, "amin")
    # A slice without any live weight has the index ``live``, which is cut off.
    marks = torch.zeros(layer.live + 1, dtype=torch.bool, device=size.device)
    return marks.scatter_(0, first, True)[: layer.live]


def left_zero(
    layer: SparseLayer, mask: Tensor, stays: Tensor, values: Tensor | None = None
) -> Tensor:
    """Return which slices would contain only zeros after a change of the mask.

    Collective if the layer is sharded.

    Args:
        layer: the layer, under weight norm, before the change.
        mask: which weights are live afterwards, bool, ``(numel,)``.
        stays: which weights keep their value if they are live both now and afterwards, bool,
            ``(numel,)``.
        values: the first values of all other weights, of the weight's shape; zero by default.

    Returns:
        A bool tensor with one entry a slice.
    """
    assert layer.norm_dim is not None
    before = layer.positions()
    keeps = take(mask, before) & take(stays, before) & (layer.gather(layer.weight) != 0)
    kept = torch.zeros(layer.numel, dtype=torch.bool, device=keeps.device)
    kept.scatter_(0, before.long(), keeps)
    if values is not None:
        was_kept = torch.zeros_like(kept).scatter_(0, before.long(), take(stays, before))
        kept |= mask & ~was_kept & (full_tensor(values).reshape(-1) != 0)
    return ~_rows(kept.view(layer.weight.shape), layer.norm_dim).any(1)


def described(slices: list[int], dim: int) -> str:
    """Return the slices as text for an error message: ``"slices 0, 3 along dimension 0"``."""
    more = len(slices) - MOST_SLICES
    listed = ", ".join(map(str, slices[:MOST_SLICES])) + (f" and {more} more" if more > 0 else "")
    if dim == WHOLE:
        return "the only slice"
    return f"{'slice' if len(slices) == 1 else 'slices'} {listed} along dimension {dim}"


def _slice_of(positions: Tensor, weight: Tensor, dim: int) -> Tensor:
    """Return the number of the slice that contains each position, row-major."""
    if dim == WHOLE:
        return torch.zeros_like(positions, dtype=torch.long)
    return positions.long() // math.prod(weight.shape[dim + 1 :]) % weight.shape[dim]


def _rows(tensor: Tensor, dim: int) -> Tensor:
    """Return a tensor as a matrix with one slice in each row."""
    if dim == WHOLE:
        return tensor.reshape(1, -1)
    return tensor.movedim(dim, 0).reshape(tensor.shape[dim], -1)


def _from_rows(rows: Tensor, like: Tensor, dim: int) -> Tensor:
    """Undo :func:`_rows`: return a matrix with one slice a row in the shape of ``like``."""
    if dim == WHOLE:
        return rows.reshape(like.shape)
    return rows.view(like.movedim(dim, 0).shape).movedim(0, dim)


def _shape_of_norms(weight: Tensor, dim: int) -> tuple[int, ...]:
    return tuple(size if number == dim else 1 for number, size in enumerate(weight.shape))
