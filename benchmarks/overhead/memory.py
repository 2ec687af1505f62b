"""Bytes that a contender holds between two steps."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn

from benchmarks.overhead.contenders import Contender

Array = Tensor | np.ndarray[Any, Any]


def resident_bytes(contender: Contender) -> dict[str, int]:
    """Return the bytes of all tensors and arrays that a contender holds between steps.

    They are found by following references, so the private tensors of a library count too.

    Returns:
        ``weights``: parameters and BatchNorm statistics. ``gradients``. ``state``: the tensors in
        ``optimizer.state``. ``masks``: tensors of bools or bytes, and tensors of another type that
        have only zeros and ones. ``index``: tensors of integers. ``other``: the rest.
    """
    parameters = list(contender.model.parameters())
    gradients = [weight.grad for weight in parameters if weight.grad is not None]
    counted: set[int] = set()
    sizes = {
        "weights": _take([*parameters, *_statistics(contender.model)], counted),
        "gradients": _take(gradients, counted),
        # The keys of the state are the parameters, whose hooks lead to everything else.
        "state": _take(_walk(list(contender.optimizer.state.values())), counted),
        **dict.fromkeys(("masks", "index", "other"), 0),
    }
    for array in _walk(contender.holders()):
        sizes[_kind(array)] += _take([array], counted)
    return sizes


def _statistics(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            yield from module.buffers()


def _kind(array: Array) -> str:
    name = str(array.dtype).removeprefix("torch.")
    if name in ("bool", "uint8"):
        return "masks"
    if "int" in name:
        return "index"
    ones = array == 1
    is_mask = array.ndim and ones.any() and (ones | (array == 0)).all()
    return "masks" if is_mask else "other"


def _take(arrays: Iterable[Array], counted: set[int]) -> int:
    """Return the bytes of the storages that are not in ``counted`` yet, and add them to it."""
    new = {pointer: size for pointer, size in map(_storage, arrays) if pointer not in counted}
    counted.update(new)
    return sum(new.values())


def _storage(array: Array) -> tuple[int, int]:
    if isinstance(array, Tensor):
        storage = array.untyped_storage()
        return storage.data_ptr(), storage.nbytes()
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.__array_interface__["data"][0], array.nbytes


def _walk(root: Any) -> Iterator[Array]:
    """Yield every tensor and array that ``root`` refers to."""
    seen: set[int] = set()
    open_ends = [root]
    while open_ends:
        item = open_ends.pop()
        # The references of classes and modules lead to all objects of the process.
        if id(item) in seen or isinstance(item, type | ModuleType):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor | np.ndarray):
            yield item
            hooks = ("_backward_hooks", "_post_accumulate_grad_hooks", "__dict__")
            open_ends.extend(getattr(item, name, None) for name in hooks)
        elif isinstance(item, FunctionType):
            # The globals of a function are a full module, so they are left out.
            open_ends.extend((item.__closure__, item.__defaults__))
        else:
            open_ends.extend(gc.get_referents(item))
