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

#: Through these, everything there is could be reached.
_NOT_FOLLOWED = (type, ModuleType)


def resident_bytes(contender: Contender) -> dict[str, int]:
    """Return the bytes of all tensors and arrays that a contender holds between steps.

    They are found by following references, so nothing that a library keeps for itself is left out.

    Returns:
        ``weights``: parameters and BatchNorm statistics. ``gradients``. ``state``: what is in
        ``optimizer.state``. ``masks``: tensors of truth values or bytes, and those that are
        ``masks()`` in any other type. ``index``: tensors of whole numbers. ``other``: the rest.
    """
    parameters = list(contender.model.parameters())
    gradients = [weight.grad for weight in parameters if weight.grad is not None]
    counted: dict[int, int] = {}
    sizes = {
        "weights": _take([*parameters, *_statistics(contender.model)], counted),
        "gradients": _take(gradients, counted),
        # Its keys are the parameters, whose hooks lead to everything else.
        "state": _take(
            (found for found, _ in _walk(list(contender.optimizer.state.values()))), counted
        ),
        "masks": 0,
        "index": 0,
        "other": 0,
    }
    for array, label in _walk(contender.holders()):
        sizes[_kind(array, label)] += _take([array], counted)
    return sizes


def _statistics(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            yield from module.buffers()


def _kind(array: Array, label: str) -> str:
    if label.rpartition(".")[2] == "mask" or label.endswith("_mask"):
        return "masks"
    name = str(array.dtype).removeprefix("torch.")
    if name in ("bool", "uint8"):
        return "masks"
    return "index" if "int" in name else "other"


def _take(arrays: Iterable[Array], counted: dict[int, int]) -> int:
    """Return the bytes of those storages that are not ``counted`` yet, and count them."""
    new = 0
    for array in arrays:
        pointer, size = _storage(array)
        if pointer not in counted:
            counted[pointer] = size
            new += size
    return new


def _storage(array: Array) -> tuple[int, int]:
    if isinstance(array, Tensor):
        storage = array.untyped_storage()
        return storage.data_ptr(), storage.nbytes()
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.__array_interface__["data"][0], array.nbytes


def _walk(root: Any) -> Iterator[tuple[Array, str]]:
    """Yield every tensor and array that ``root`` refers to, and the attribute that leads there."""
    seen: set[int] = set()
    open_ends = [(root, "")]
    while open_ends:
        item, label = open_ends.pop()
        if id(item) in seen or isinstance(item, _NOT_FOLLOWED):
            continue
        seen.add(id(item))
        if isinstance(item, Tensor | np.ndarray):
            yield item, label
            open_ends.extend((hooks, label) for hooks in _hooks(item))
        else:
            # Last in, first out: what has a name is met by its name.
            open_ends.extend((other, label) for other in _referents(item))
            open_ends.extend(_named(item))


def _hooks(array: Array) -> list[Any]:
    names = ("_backward_hooks", "_post_accumulate_grad_hooks", "__dict__")
    return [getattr(array, name, None) for name in names]


def _referents(item: Any) -> list[Any]:
    if isinstance(item, FunctionType):
        # Its globals are a whole module.
        return [item.__closure__, item.__defaults__]
    return gc.get_referents(item)


def _named(item: Any) -> Iterator[tuple[Any, str]]:
    owner = type(item).__name__
    names = [name for cls in type(item).__mro__ for name in _slots(cls)]
    names += list(getattr(item, "__dict__", {}))
    for name in names:
        value = getattr(item, "__dict__", {}).get(name)
        yield (getattr(item, name, None) if value is None else value), f"{owner}.{name}"
    if isinstance(item, nn.Module):
        yield from ((buffer, f"{owner}.{name}") for name, buffer in item._buffers.items())


def _slots(cls: type) -> tuple[str, ...]:
    slots = cls.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
