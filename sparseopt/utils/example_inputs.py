"""What ``example_inputs=`` means: how a model is called with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparseopt.utils.deprecation import warn_old_spelling

__all__ = ["as_arguments", "with_old_inputs"]


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


def with_old_inputs(
    example_inputs: Any,
    inputs: tuple[Any, ...],
    keywords: Mapping[str, Any],
    *,
    old: str,
    new: str,
    stacklevel: int = 2,
) -> Any:
    """Return ``example_inputs``; or warn and return inputs given one by one, as in 0.1.0.

    Args:
        example_inputs: what the caller's code gave under this name.
        inputs: what it gave as further positional arguments.
        keywords: what it gave as further keyword arguments.
        old: the spelling with ``inputs`` and ``keywords``, for the warning.
        new: the spelling to write instead.
        stacklevel: 1 is the function that calls this one, 2 is its caller, and so on.

    Raises:
        TypeError: if inputs are given in both spellings.

    Example:
        >>> with_old_inputs((1, 2), (), {}, old="f(*inputs)", new="f(example_inputs=inputs)")
        (1, 2)
    """
    if not inputs and not keywords:
        return example_inputs
    if example_inputs is not None:
        given = [*(["positional inputs"] if inputs else []), *(f"{name}=" for name in keywords)]
        raise TypeError(
            f"inputs are given twice, as example_inputs= and as {', '.join(given)}: write {new}."
        )
    warn_old_spelling(old, new, stacklevel=stacklevel + 1)
    return inputs, keywords
