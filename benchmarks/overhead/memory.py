"""Bytes that an optimizer holds between two steps."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn

from benchmarks.overhead.contenders import Contender

#: Through these, everything there is could be reached.
_NOT_FOLLOWED = (type, ModuleType, FunctionType, nn.Module)


def resident_bytes(contender: Contender) -> dict[str, int]:
    """Return the bytes of all tensors that an optimizer holds, beside weights and gradients.

    Tensors are found by following references from the optimizer, so nothing that it keeps for
    itself is left out, whichever library it is from.

    Returns:
        ``state``: what is in ``optimizer.state``. ``masks``: what is in ``optimizer.masks``.
        ``index``: everything else, which is how live weights are found and followed.
    """
    optimizer = contender.optimizer
    counted = _storages(_model_tensors(contender.model))
    state = _take(_tensors_within(optimizer.state), counted)
    masks = _take(getattr(optimizer, "masks", {}).values(), counted)
    return {"state": state, "masks": masks, "index": _take(_tensors_within(optimizer), counted)}


def _model_tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.buffers()
    for parameter in model.parameters():
        yield parameter
        if parameter.grad is not None:
            yield parameter.grad


def _take(tensors: Iterable[Tensor], counted: dict[int, int]) -> int:
    """Return the bytes of those storages that are not ``counted`` yet, and count them."""
    found = _storages(tensors)
    new = sum(size for pointer, size in found.items() if pointer not in counted)
    counted.update(found)
    return new


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    storages = [tensor.untyped_storage() for tensor in tensors]
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _tensors_within(root: Any) -> Iterator[Tensor]:
    seen: set[int] = set()
    open_ends = [root]
    while open_ends:
        item = open_ends.pop()
        if id(item) in seen or isinstance(item, _NOT_FOLLOWED):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield item
        else:
            open_ends.extend(gc.get_referents(item))
