"""What ``example_inputs=`` means: how a model is called with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["as_arguments"]


def as_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and the keyword arguments that ``example_inputs`` stands for.

    A tuple or list is the positional arguments, a mapping the keyword arguments, and anything else
    the only argument. A pair of a tuple and a mapping is both kinds of arguments:
    :meth:`sparseopt.SparseOptimizer.example_inputs` returns such a pair.

    Example:
        >>> as_arguments((1, 2)), as_arguments({"input_ids": 3}), as_arguments(4)
        (((1, 2), {}), ((), {'input_ids': 3}), ((4,), {}))
        >>> as_arguments(((1,), {"input_ids": 3}))
        ((1,), {'input_ids': 3})
    """
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if not isinstance(example_inputs, (tuple, list)):
        return (example_inputs,), {}
    if len(example_inputs) == 2:
        args, kwargs = example_inputs
        if isinstance(args, tuple) and isinstance(kwargs, Mapping):
            return args, dict(kwargs)
    return tuple(example_inputs), {}
