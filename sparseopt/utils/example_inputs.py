"""The inputs that a user gives for one run of the model, in one form everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["call_arguments"]


def call_arguments(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and the keyword arguments that ``example_inputs`` stands for.

    Args:
        example_inputs: a tuple of positional inputs; a mapping from names to keyword inputs; a
            pair of both, which :meth:`sparseopt.SparseOptimizer.example_inputs` returns; or
            anything else, which is the only positional input.

    Example:
        >>> call_arguments("x"), call_arguments(("x", "y")), call_arguments({"x": 1})
        ((('x',), {}), (('x', 'y'), {}), ((), {'x': 1}))
        >>> call_arguments((("x",), {"y": 1}))
        (('x',), {'y': 1})
    """
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if not isinstance(example_inputs, tuple):
        return (example_inputs,), {}
    if len(example_inputs) == 2:
        args, kwargs = example_inputs
        if isinstance(args, tuple) and isinstance(kwargs, Mapping):
            return args, dict(kwargs)
    return example_inputs, {}
