"""Noting what an optimizer fills the state of a parameter with when it makes it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from sparseopt.distributed.dtensor import is_sharded

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


class _NotingState(defaultdict[Any, Any]):
    """An optimizer's state that notes what comes into new entries, however they are brought in."""

    def __init__(self, entries: Mapping[Any, Any]) -> None:
        super().__init__(_Noting, entries)
        self.brought: dict[Any, dict[str, float]] = {}

    def __setitem__(self, parameter: Any, entry: Any) -> None:
        if isinstance(entry, dict) and not isinstance(entry, _Noting):
            # Kept as it is, for the optimizer may hold on to it.
            self.brought[parameter] = {
                name: common_value(value)
                for name, value in entry.items()
                if isinstance(value, Tensor) and not is_sharded(value)
            }
        super().__setitem__(parameter, entry)

    def setdefault(self, parameter: Any, default: Any = None) -> Any:
        if parameter not in self:
            self[parameter] = _Noting() if default == {} else default
        return self[parameter]


@contextmanager
def noting_first_values(optimizer: Optimizer) -> Iterator[dict[Tensor, dict[str, float]]]:
    """Yield a mapping that has, in the end, what new state of ``optimizer`` was filled with.

    What it fills in later, in an entry that it made itself and brought in before, is not noted;
    nor is anything if its state is of a kind of its own, or can't be replaced for a while.
    """
    found: dict[Tensor, dict[str, float]] = {}
    state = optimizer.state
    if type(state) is not defaultdict:
        yield found
        return
    noting = _NotingState(state)
    try:
        optimizer.state = noting
    except AttributeError:
        # A wrapper whose state is read through to another optimizer's.
        yield found
        return
    try:
        yield found
    finally:
        optimizer.state = state
        state.clear()
        for parameter, entry in noting.items():
            noted = isinstance(entry, _Noting)
            state[parameter] = dict(entry) if noted else entry
            first = entry.first if noted else noting.brought.get(parameter)
            if first:
                found[parameter] = first


def common_value(values: Tensor) -> float:
    """Return the value that all of ``values`` have, or 0 if they differ or there are none.

    Example:
        >>> import torch
        >>> common_value(torch.tensor([0.25, 0.25, 0.25])), common_value(torch.tensor([0.25, 0.5]))
        (0.25, 0.0)
    """
    flat = values.reshape(-1)
    return float(flat[0]) if flat.numel() and bool((flat == flat[0]).all()) else 0.0
