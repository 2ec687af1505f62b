"""Finding tensors in an optimizer's state, and telling values of weights from factors."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

__all__ = ["is_factor", "may_be_factor", "tensors_in"]


def tensors_in(entry: dict[str, Any]) -> Iterator[tuple[Any, Any, str, Tensor]]:
    """Yield every tensor in the state of a parameter, those in containers included.

    Each comes as the container that holds it, its key there, its name in ``entry``, and itself.

    Example:
        >>> import torch
        >>> entry = {"step": 3, "exp_avg": torch.ones(2), "last": [torch.zeros(2)]}
        >>> [(key, name) for _, key, name, _ in tensors_in(entry)]
        [('exp_avg', 'exp_avg'), (0, 'last')]
    """
    for name, value in list(entry.items()):
        for container, key, tensor in _tensors_at(entry, name, value):
            yield container, key, name, tensor


def may_be_factor(weight: Tensor) -> bool:
    """Whether something that is no value of a weight may have the shape of ``weight``.

    The preconditioner of a square matrix has, and so have the statistics of rows where there is
    one column.
    """
    shape = weight.shape
    return (len(shape) == 2 and shape[0] == shape[1]) or sum(size > 1 for size in shape) < 2


def is_factor(name: str, state: Mapping[Any, Any]) -> bool:
    """Whether ``name`` has another shape than the parameter's in the state of any parameter."""
    return any(
        tensor.shape != parameter.shape
        for parameter, entry in state.items()
        if isinstance(parameter, Tensor) and name in entry
        for _, _, tensor in _tensors_at(entry, name, entry[name])
    )


def _tensors_at(container: Any, key: Any, value: Any) -> Iterator[tuple[Any, Any, Tensor]]:
    if isinstance(value, Tensor):
        yield container, key, value
    elif isinstance(value, dict):
        for inner_key, inner in list(value.items()):
            yield from _tensors_at(value, inner_key, inner)
    elif isinstance(value, (list, deque)):
        for index, inner in enumerate(value):
            yield from _tensors_at(value, index, inner)
