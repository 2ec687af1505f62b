"""Nested values, such as the outputs of a model, with what dataclasses and other objects hold."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any, Final

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["copy_of", "leaves", "map_leaves"]

_WHOLE: Final = (Tensor, nn.Module, type, FunctionType, MethodType, ModuleType)


def leaves(value: Any) -> list[Any]:
    """Return the leaves of a nested value: what its containers and its objects hold.

    Example:
        >>> from types import SimpleNamespace
        >>> leaves([1, {"a": SimpleNamespace(b=2, c=[3])}])
        [1, 2, 3]
    """
    return list(_leaves(value, set()))


def _leaves(value: Any, around: set[int]) -> Iterator[Any]:
    for leaf in tree_leaves(value):
        held = _held(leaf)
        if held is None or id(leaf) in around:
            yield leaf
        else:
            yield from _leaves(held, around | {id(leaf)})


def _held(leaf: Any) -> Mapping[str, Any] | None:
    """Return what an object holds, by name; ``None`` for a value without parts."""
    if isinstance(leaf, _WHOLE):
        return None
    if dataclasses.is_dataclass(leaf):
        return {field.name: getattr(leaf, field.name) for field in dataclasses.fields(leaf)}
    return getattr(leaf, "__dict__", None) or None


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """Return a nested value with a function applied to its leaves, and to fields of dataclasses.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Output:
        ...     logits: float
        >>> map_leaves(lambda leaf: 2 * leaf, [1, Output(2.5)])
        [2, Output(logits=5.0)]
    """

    def mapped(leaf: Any) -> Any:
        if not dataclasses.is_dataclass(leaf) or isinstance(leaf, type):
            return function(leaf)
        result = copy.copy(leaf)
        for field in dataclasses.fields(leaf):
            # The dataclass may be frozen.
            object.__setattr__(result, field.name, map_leaves(function, getattr(leaf, field.name)))
        return result

    return tree_map(mapped, value)


def copy_of(value: Any) -> Any:
    """Return a copy of a nested value: clones of its tensors, and deep copies of its objects.

    An object that can't be copied stays the same object.
    """
    return tree_map(_copied_leaf, value)


def _copied_leaf(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.clone()
    if _held(leaf) is None:
        return leaf
    try:
        return copy.deepcopy(leaf)
    # Objects raise errors of any type: TypeError for a lock, RuntimeError for a graph's tensor.
    except Exception:
        return leaf
