"""The optimizer state of a fresh weight: known for torch's optimizers, recorded for all others."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Adagrad, Optimizer, Rprop

from sparseopt.distributed.dtensor import is_sharded

__all__ = [
    "codes_of",
    "common_value",
    "copied_containers",
    "each_of_shape",
    "ends_in_shape",
    "fresh_value",
    "innermost",
    "is_factor",
    "is_known",
    "may_be_factor",
    "noting_first_values",
    "tensors_in",
    "zero_code",
]


def tensors_in(entry: dict[str, Any]) -> Iterator[tuple[Any, Any, str, Tensor]]:
    """Yield every tensor in the state of a parameter, also tensors in containers.

    Each item is the container that holds the tensor, the key there, the path in ``entry``, and the
    tensor.

    Example:
        >>> import torch
        >>> entry = {"step": 3, "exp_avg": torch.ones(2), "last": [{"mean": torch.zeros(2)}]}
        >>> [(key, path) for _, key, path, _ in tensors_in(entry)]
        [('exp_avg', 'exp_avg'), ('mean', 'last.mean')]
    """
    for name, value in list(entry.items()):
        yield from _tensors_at(entry, name, str(name), value)


def copied_containers(value: Any) -> Any:
    """Return a state with copies of its dictionaries and lists, but with the same tensors."""
    if isinstance(value, dict):
        return {key: copied_containers(inner) for key, inner in value.items()}
    if isinstance(value, (list, deque)):
        return type(value)(map(copied_containers, value))
    return value


def ends_in_shape(tensor: Tensor, shape: torch.Size) -> bool:
    """Whether ``tensor`` has the shape, or is a stack of tensors of this shape.

    Example:
        >>> ends_in_shape(torch.zeros(2, 3, 4), torch.Size([3, 4]))
        True
    """
    return tensor.ndim >= len(shape) and tensor.shape[tensor.ndim - len(shape) :] == shape


def each_of_shape(tensor: Tensor, shape: torch.Size) -> Iterator[Tensor]:
    """Yield the tensor, or, if it is a stack, the tensors of ``shape`` in it, as views."""
    if tensor.ndim == len(shape):
        yield tensor
    else:
        for part in tensor.unbind():
            yield from each_of_shape(part, shape)


def may_be_factor(weight: Tensor) -> bool:
    """Whether state that is not one value for each weight may have the shape of ``weight``.

    The preconditioner of a square matrix has this shape, and so have the statistics of the rows of
    a matrix with one column.
    """
    shape = weight.shape
    return (len(shape) == 2 and shape[0] == shape[1]) or sum(size > 1 for size in shape) < 2


def is_factor(path: str, state: Mapping[Any, Any]) -> bool:
    """Whether the state at ``path`` has another shape than its parameter, for any parameter."""
    return any(
        not ends_in_shape(tensor, parameter.shape)
        for parameter, entry in state.items()
        if isinstance(parameter, Tensor) and isinstance(entry, dict)
        for _, _, found, tensor in tensors_in(entry)
        if found == path
    )


def zero_code(entry: Mapping[str, Any], name: str, value: Tensor) -> int | None:
    """Return which of the 256 codes of a state stands for 0.

    Known are the codes of bitsandbytes (indices into a map that is kept beside them), torchao (the
    same, or float8) and FlashAdamW (codes are proportional to values).

    Args:
        entry: the state of a parameter.
        name: the state's name.
        value: the state.

    Returns:
        The code, or ``None`` if the state has no codes, or if the code of 0 is not known.
    """
    codes = getattr(value, "codes", value)
    if codes.element_size() != 1 or codes.dtype == torch.bool:
        return None
    if codes.is_floating_point() or name.endswith("::quantized"):
        return 0
    # The code of 0 is not always the lowest, nor the same for all states of an optimizer.
    levels = getattr(value, "qmap", entry.get(name.replace("state", "qmap")))
    if not isinstance(levels, Tensor) or levels is value or levels.numel() != 256:
        return None
    places = (levels == 0).nonzero()
    return int(places[0]) if places.numel() else None


def codes_of(value: Tensor) -> Tensor:
    """Return the codes of a state that :func:`zero_code` accepts: a view, uint8."""
    codes: Tensor = getattr(value, "codes", value)
    return codes.view(torch.uint8)


def _tensors_at(
    container: Any, key: Any, path: str, value: Any
) -> Iterator[tuple[Any, Any, str, Tensor]]:
    """Yield the tensors in ``value``; the items of a list share the path of the list."""
    if isinstance(value, Tensor):
        yield container, key, path, value
    elif isinstance(value, dict):
        for inner_key, inner in list(value.items()):
            yield from _tensors_at(value, inner_key, f"{path}.{inner_key}", inner)
    elif isinstance(value, (list, deque)):
        for index, inner in enumerate(value):
            yield from _tensors_at(value, index, path, inner)


def is_known(optimizer: Optimizer) -> bool:
    """Whether :func:`fresh_value` is right for ``optimizer``: it is one of torch's own."""
    return type(optimizer).__module__.partition(".")[0] == "torch"


def innermost(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer that torch's wrappers for many processes step.

    These are ``ZeroRedundancyOptimizer`` and ``PostLocalSGDOptimizer``.
    """
    while type(optimizer).__module__.startswith("torch.distributed."):
        inner = getattr(optimizer, "optim", None)
        if not isinstance(inner, Optimizer):
            break
        optimizer = inner
    return optimizer


def fresh_value(optimizer: Optimizer, group: dict[str, Any], key: str) -> float:
    """Return the initial value of the state ``key`` of a fresh parameter in ``optimizer``.

    Moments start at zero. Rprop's step size starts at the learning rate, and Adagrad's accumulator
    at ``initial_accumulator_value``. If these started at zero, a grown weight would never move
    under Rprop, and would move too far under Adagrad.
    """
    optimizer = innermost(optimizer)
    if isinstance(optimizer, Rprop) and key == "step_size":
        return float(group["lr"])
    if isinstance(optimizer, Adagrad) and key == "sum":
        return float(group["initial_accumulator_value"])
    return 0.0


class _Noting(dict[str, Any]):
    """A state entry that records the initial value of every new tensor."""

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
    """An optimizer's state that records the values in all new entries, however they are added."""

    def __init__(self, entries: Mapping[Any, Any]) -> None:
        super().__init__(_Noting, entries)
        self.added: dict[Any, dict[str, float]] = {}

    def __setitem__(self, parameter: Any, entry: Any) -> None:
        if isinstance(entry, dict) and not isinstance(entry, _Noting):
            # The entry itself is kept, because the optimizer may hold a reference to it.
            self.added[parameter] = {
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
    """Yield a mapping that is filled on exit with the initial values of new state.

    For an entry that the optimizer makes itself, only the values at the moment of adding the entry
    are recorded. Nothing is recorded if ``optimizer.state`` is not a plain ``defaultdict``, or
    can't be replaced inside the block.
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
        # The optimizer is a wrapper whose state belongs to another optimizer.
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
            first = entry.first if noted else noting.added.get(parameter)
            if first:
                found[parameter] = first


def common_value(values: Tensor) -> float:
    """Return the value that all of ``values`` have, or 0 if they differ or there are none.

    The result is also 0 for codes, and for subclasses of tensors, which may not be indexed.

    Example:
        >>> import torch
        >>> common_value(torch.tensor([0.25, 0.25, 0.25])), common_value(torch.tensor([0.25, 0.5]))
        (0.25, 0.0)
    """
    if type(values) not in (Tensor, Parameter) or values.element_size() < 2:
        return 0.0
    flat = values.reshape(-1)
    return float(flat[0]) if flat.numel() and bool((flat == flat[0]).all()) else 0.0
