"""Refuses a weight that shares memory with another parameter, which would have another mask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from sparseopt.distributed.dtensor import local
from sparseopt.masks.maskable_weights import has_shape

__all__ = ["refuse_shared_memory"]


def refuse_shared_memory(
    weights: Mapping[str, nn.Parameter],
    groups: Sequence[Mapping[str, Any]],
    model: nn.Module | None,
) -> None:
    """Raise :class:`ValueError` if a weight shares entries in memory with another parameter.

    Parameters that are disjoint parts of one storage, as in a flat buffer, share no entries.

    Args:
        weights: the weights that become sparse, by name.
        groups: the param groups.
        model: the model, if there is one.
    """
    names: dict[nn.Parameter, str] = {
        parameter: f"{number}.{index}"
        for number, group in enumerate(groups)
        for index, parameter in enumerate(group["params"])
    }
    if model is not None:
        names.update((parameter, name) for name, parameter in model.named_parameters())
    names.update((parameter, name) for name, parameter in weights.items())
    sparse = set(weights.values())
    for one, other in _overlapping([parameter for parameter in names if _has_memory(parameter)]):
        if one in sparse or other in sparse:
            weight, second = (one, other) if one in sparse else (other, one)
            raise ValueError(
                f"{names[weight]!r} and {names[second]!r} are two parameters with the same memory, "
                "so a mask for one would not fit the other. If they are tied, give both modules "
                "one torch.nn.Parameter (decoder.weight = encoder.weight); if one is the transpose "
                "of the other, compute it in forward(). Or leave "
                "them dense, with sparse= or density=False."
            )


def _has_memory(parameter: Tensor) -> bool:
    if not has_shape(parameter) or parameter.is_meta:
        return False
    tensor: Any = local(parameter)
    if tensor.layout != torch.strided or is_traceable_wrapper_subclass(tensor):
        return False
    # Some devices have no addresses.
    return bool(tensor.numel() and tensor.data_ptr())


def _overlapping(parameters: Sequence[nn.Parameter]) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
    """Yield pairs of parameters that have entries in memory in common.

    Invariant: parameters are visited in the order of their first entries, so that only those whose
    last entry comes later can overlap with the next.
    """
    spans = sorted(((*_span(local(one)), index) for index, one in enumerate(parameters)))
    open_spans: list[tuple[int, int]] = []
    for start, end, index in spans:
        open_spans = [(last, other) for last, other in open_spans if last > start]
        for _, other in open_spans:
            if _share_entries(local(parameters[index]), local(parameters[other])):
                yield parameters[other], parameters[index]
        open_spans.append((end, index))


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return the first address of a tensor, and the address after its last entry."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = sum((size - 1) * step for size, step in steps)
    start = tensor.data_ptr()
    return start, start + (last + 1) * tensor.element_size()


def _share_entries(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors whose spans overlap share entries; parts of a matrix may interleave."""
    if not (_has_gaps(one) or _has_gaps(other)):
        return True
    return bool(torch.isin(_addresses(one), _addresses(other)).any())


def _has_gaps(tensor: Tensor) -> bool:
    start, end = _span(tensor)
    return end - start != tensor.nbytes


def _addresses(tensor: Tensor) -> Tensor:
    addresses = torch.tensor([tensor.data_ptr()], device="cpu")
    for size, step in zip(tensor.shape, tensor.stride(), strict=True):
        steps = torch.arange(size, device="cpu") * step * tensor.element_size()
        addresses = (addresses[:, None] + steps).reshape(-1)
    return addresses
