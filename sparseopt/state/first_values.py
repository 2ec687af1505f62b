"""Noting what an optimizer fills the state of a parameter with when it makes it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from sparseopt.sharding import is_sharded

__all__ = ["common_value", "noting_first_values"]


class _Noting(dict[str, Any]):
    """A state entry that remembers what every tensor was filled with when it came in first."""

    def __init__(self) -> None:
        super().__init__()
        self.first: dict[str, float] = {}

    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor) and name not in self.first and not is_sharded(value):
            self.first[name] = common_value(value)
        super().__setitem__(name, value)

    def setdefault(self, name: str, default: Any = None) -> Any:
        if name not in self:
            self[name] = default
        return self[name]

    def update(self, *args: Any, **kwargs: Any) -> None:
        for name, value in dict(*args, **kwargs).items():
            self[name] = value


@contextmanager
def noting_first_values(
    state: MutableMapping[Any, Any],
) -> Iterator[dict[Tensor, dict[str, float]]]:
    """Yield a mapping that has, in the end, what new entries of ``state`` were filled with.

    Args:
        state: an optimizer's, by parameter. Entries that it makes itself when it is asked for one
            are noted, as torch's do.
    """
    found: dict[Tensor, dict[str, float]] = {}
    if not isinstance(state, defaultdict):
        yield found
        return
    factory, state.default_factory = state.default_factory, _Noting
    try:
        yield found
    finally:
        state.default_factory = factory
        for parameter, entry in state.items():
            if isinstance(entry, _Noting):
                found[parameter] = entry.first
                state[parameter] = dict(entry)


def common_value(values: Tensor) -> float:
    """Return the value that all of ``values`` have, or 0 if they differ or there are none.

    Example:
        >>> import torch
        >>> common_value(torch.tensor([0.25, 0.25, 0.25])), common_value(torch.tensor([0.25, 0.5]))
        (0.25, 0.0)
    """
    flat = values.reshape(-1)
    return float(flat[0]) if flat.numel() and bool((flat == flat[0]).all()) else 0.0
