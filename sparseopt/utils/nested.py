"""Nested values, such as outputs and states of a model, with what dataclasses and objects hold."""

from __future__ import annotations

import copy
import dataclasses
import operator
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping
from types import FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, Final

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

__all__ = ["containers", "copy_of", "leaves", "map_leaves", "parts"]

_WITHOUT_PARTS: Final = (Tensor, nn.Module, type, FunctionType, MethodType, ModuleType)


def leaves(value: Any) -> list[Any]:
    """Return the leaves of a nested value: what its containers and its objects hold.

    An object that occurs several times counts once.

    Example:
        >>> from types import SimpleNamespace
        >>> leaves([1, {"a": SimpleNamespace(b=2, c=[3])}])
        [1, 2, 3]
    """
    found: list[Any] = []
    seen: set[int] = set()
    rest = [value]
    while rest:
        for leaf in tree_leaves(rest.pop()):
            held = _held(leaf)
            if held is None:
                found.append(leaf)
            elif id(leaf) not in seen:
                seen.add(id(leaf))
                rest.append(held)
    return found


def _held(leaf: Any) -> Mapping[str, Any] | None:
    """Return what an object holds, by name; ``None`` for a value without parts."""
    if isinstance(leaf, _WITHOUT_PARTS):
        return None
    return _fields(leaf) if dataclasses.is_dataclass(leaf) else getattr(leaf, "__dict__", None)


def _fields(leaf: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that have a value."""
    names = (field.name for field in dataclasses.fields(leaf))
    return {name: getattr(leaf, name) for name in names if hasattr(leaf, name)}


def containers(value: Any) -> list[Any]:
    """Return the containers and dataclasses in a nested value, and the value if it is one.

    Each occurs once. What other objects hold is left out.

    Example:
        >>> containers({"a": [1, (2,)]})
        [{'a': [1, (2,)]}, [1, (2,)], (2,)]
    """
    found: list[Any] = []
    seen: set[int] = set()
    rest = [value]
    while rest:
        one = rest.pop()
        held = parts(one)
        if held is not None and id(one) not in seen:
            seen.add(id(one))
            found.append(one)
            rest.extend(held)
    return found


def parts(value: Any) -> list[Any] | None:
    """Return the items of a container, or the fields of a dataclass; ``None`` for other values.

    Example:
        >>> parts({"a": 1, "b": [2]}), parts(3)
        ([1, [2]], None)
    """
    if isinstance(value, (list, tuple, set, frozenset, deque)):
        return list(value)
    if isinstance(value, _WITHOUT_PARTS):
        return None
    if isinstance(value, Mapping):
        return list(value.values())
    if dataclasses.is_dataclass(value):
        return list(_fields(value).values())
    return list(vars(value).values()) if isinstance(value, SimpleNamespace) else None


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """Return a nested value with a function applied to its leaves, and to fields of dataclasses.

    A dataclass without a changed field stays the same object.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Output:
        ...     logits: float
        >>> map_leaves(lambda leaf: 2 * leaf, [1, Output(2.5)])
        [2, Output(logits=5.0)]
    """
    around: set[int] = set()

    def mapped(leaf: Any) -> Any:
        if not dataclasses.is_dataclass(leaf) or isinstance(leaf, type):
            return function(leaf)
        if id(leaf) in around:
            return leaf
        around.add(id(leaf))
        fields = _fields(leaf)
        changed = {name: tree_map(mapped, field) for name, field in fields.items()}
        around.discard(id(leaf))
        return _with_fields(leaf, changed)

    return tree_map(mapped, value)


def _with_fields(leaf: Any, fields: Mapping[str, Any]) -> Any:
    """Return a dataclass with these fields, which is the same object if no leaf differs."""
    before, after = tree_leaves(_fields(leaf)), tree_leaves(dict(fields))
    if len(before) == len(after) and all(map(operator.is_, before, after)):
        return leaf
    result = copy.copy(leaf)
    for name, field in fields.items():
        # The dataclass may be frozen, and it may be a mapping of its fields.
        object.__setattr__(result, name, field)
        if isinstance(result, MutableMapping) and name in result:
            result[name] = field
    return result


def copy_of(value: Any) -> Any:
    """Return a deep copy of a nested value in which tensors are clones, and modules are shared.

    If an object in it can't be copied, only containers and tensors are copied.
    """
    known = [leaf for leaf in leaves(value) if isinstance(leaf, (Tensor, nn.Module))]
    memo = {id(leaf): leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in known}
    try:
        return copy.deepcopy(value, memo)
    # Objects raise errors of any type: TypeError for a lock or a generator.
    except Exception:
        return tree_map_only(Tensor, Tensor.clone, value)
