"""Finds out which state of an optimizer has one value for each weight.

For torch's own optimizers this is known. For other optimizers it is shown by an experiment. One
copy of the optimizer steps on a small parameter. Another copy steps on the same parameter with the
indices of every axis permuted, in weights and gradients. State with one value for each weight comes
out permuted in the same way, even if the optimizer centres gradients by row. Moments in another
basis, factors and codes do not. Neither does per-weight state that is drawn at random, so a second
experiment decides about state that fails. A third copy gets the same random numbers, but other
gradients for some entries: the state of all other entries has to be unchanged.
"""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from sparseopt.optimizer.state.base import unhooked_step
from sparseopt.optimizer.state.fresh import common_value, ends_in_shape, tensors_in

__all__ = ["PerWeight", "depends_on_shape", "probe_shape", "show_per_weight"]

STEPS: Final = 5
#: The factor of a copy's learning rate. It is small, so that an update that mixes all entries of a
#: matrix, such as Muon's, has no visible effect on the state that is compared.
LITTLE: Final = 1e-5
#: Moves that differ by less, as a share of the largest move, count as the same.
SAME_MOVE: Final = 1e-2
#: More than the rounding of a float32 weight of the experiment.
ROUNDING: Final = 1e-6
#: From this many entries, 8-bit optimizers (bitsandbytes, torchao) keep their state in codes.
CODES_FROM: Final = 4096

#: The weights and the slopes of the loss in each step.
Course: TypeAlias = list[tuple[Tensor, Tensor]]
Start: TypeAlias = Callable[[Tensor], tuple[Optimizer, Parameter]]
Step: TypeAlias = Callable[[Optimizer, Parameter, Tensor], Any]


def probe_shape(shape: torch.Size) -> torch.Size:
    """Return a shape of few entries that an optimizer should treat like ``shape``.

    It is square if ``shape`` is, and it has enough entries for 8-bit codes if ``shape`` has.

    Example:
        >>> probe_shape(torch.Size([1024, 1024])), probe_shape(torch.Size([10, 16]))
        (torch.Size([64, 64]), torch.Size([10, 16]))
    """
    sizes = list(shape)
    while True:
        largest = max(sizes)
        smaller = [math.ceil(size / 2) if size == largest else size for size in sizes]
        if math.prod(smaller) < CODES_FROM or smaller == sizes:
            return torch.Size(sizes)
        sizes = smaller


@dataclass(frozen=True)
class PerWeight:
    """The result of the experiment about the state that has a weight's shape.

    Attributes:
        shown: whether each state has one value a weight, by its path, as
            :func:`~sparseopt.optimizer.state.fresh.tensors_in` names it. Empty if no copy could be
            stepped on its own.
        can_begin_again: whether the optimizer makes the state of a weight again if it is deleted.
    """

    shown: Mapping[str, bool]
    can_begin_again: bool


def show_per_weight(inner: Optimizer, weight: Tensor) -> PerWeight:
    """Find out which state has one value a weight.

    Args:
        inner: the optimizer; it is not stepped, and it does not change.
        weight: a parameter in its groups.
    """
    shape = probe_shape(weight.shape)
    course = _course(shape)
    generator = torch.Generator().manual_seed(1)
    orders = [torch.randperm(size, generator=generator, device="cpu") for size in shape]

    def permuted(tensor: Tensor) -> Tensor:
        tensor = tensor.cpu()
        for axis, order in enumerate(orders, start=tensor.ndim - len(orders)):
            tensor = tensor.index_select(axis, order)
        return tensor

    elsewhere = torch.ones(shape, dtype=torch.bool, device="cpu")
    elsewhere.view(-1)[:: max(2, elsewhere.numel() // 8)] = False
    permuted_course = [(permuted(values), permuted(slopes)) for values, slopes in course]
    other_course = [(values, torch.where(elsewhere, slopes, -slopes)) for values, slopes in course]
    for keeps_entry, start, step in _ways_to_step(inner, weight):
        try:
            state = _state_after(start, course, step)
            after_permutation = _state_after(start, permuted_course, step)
            after_others = _state_after(start, other_course, step)
        except Exception:
            # The code of a user's optimizer may raise anything.
            continue
        shown = {
            path: all(map(_is_plain, tensors))
            and (
                _equal([permuted(value) for value in tensors], after_permutation.get(path, []))
                or _equal(_at(elsewhere, tensors), _at(elsewhere, after_others.get(path, [])))
            )
            for path, tensors in state.items()
        }
        return PerWeight(shown, can_begin_again=not keeps_entry)
    return PerWeight({}, can_begin_again=False)


def depends_on_shape(inner: Optimizer, weight: Tensor) -> bool:
    """Whether the optimizer moves a parameter otherwise if the same entries are a 1-D tensor.

    Args:
        inner: the optimizer; it is not stepped, and it does not change.
        weight: a parameter in its groups.

    Returns:
        ``False`` also if no copy of the optimizer could be stepped on its own.
    """
    course = _course(probe_shape(weight.shape))
    flat_course = [(values.flatten(), slopes.flatten()) for values, slopes in course]
    for _, start, step in _ways_to_step(inner, weight):
        try:
            moves = _moves_along(start, course, step)
        except Exception:
            # The code of a user's optimizer may raise anything.
            continue
        try:
            flat_moves = _moves_along(start, flat_course, step)
        except Exception:
            return True
        difference = float((moves - flat_moves).abs().max())
        return difference > SAME_MOVE * float(moves.abs().max()) + ROUNDING
    return False


def _ways_to_step(inner: Optimizer, weight: Tensor) -> Iterator[tuple[bool, Start, Step]]:
    """Yield the ways to step a copy of ``inner``, until one raises no error.

    Each is whether the parameter keeps its state entry, how to start, and how to step.
    """
    for keeps_entry, step in product((False, True), (_step_on_gradient, _step_on_closure)):
        yield keeps_entry, partial(_copy_on, inner, weight, keeps_entry=keeps_entry), step


def _course(shape: torch.Size) -> Course:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(shape, generator=generator, device="cpu"),
            torch.randn(shape, generator=generator, device="cpu"),
        )
        for _ in range(STEPS)
    ]


def _state_after(start: Start, course: Course, step: Step) -> dict[str, list[Tensor]]:
    """Return, by path, the state of the parameter's shape after all steps of ``course``."""
    optimizer, parameter, _ = _run(start, course, step, LITTLE)
    found: dict[str, list[Tensor]] = {}
    for _, _, path, tensor in tensors_in(optimizer.state.get(parameter, {})):
        if ends_in_shape(tensor, parameter.shape):
            found.setdefault(path, []).append(tensor)
    return found


def _moves_along(start: Start, course: Course, step: Step) -> Tensor:
    """Return how far each step of ``course`` moves each entry, ``(steps, numel)``."""
    _, _, moves = _run(start, course, step, 1.0)
    return torch.stack([one.flatten() for one in moves]).cpu()


def _run(
    start: Start, course: Course, step: Step, factor: float
) -> tuple[Optimizer, Parameter, list[Tensor]]:
    """Make all steps of ``course``, with a multiple of the learning rate.

    Returns:
        The optimizer, the parameter, and how far each step has moved it.
    """
    moves = []
    with _random_state_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer, parameter = start(course[0][0])
        for group in optimizer.param_groups:
            if "lr" in group:
                # During a warm-up the learning rate may be zero.
                group["lr"] = group["lr"] * factor or LITTLE * factor
            if isinstance(group.get("step"), int):
                # Some optimizers make a part of their state only at every n-th step from the first.
                group["step"] = 0
        for weights, slopes in course:
            with torch.no_grad():
                parameter.copy_(weights)
            step(optimizer, parameter, slopes.to(parameter))
            moves.append(parameter.detach() - weights.to(parameter))
    return optimizer, parameter, moves


def _step_on_gradient(optimizer: Optimizer, parameter: Parameter, slopes: Tensor) -> None:
    parameter.grad = slopes + parameter.detach()
    unhooked_step(optimizer)()


def _step_on_closure(optimizer: Optimizer, parameter: Parameter, slopes: Tensor) -> None:
    """Step with a closure, whose loss the optimizer may differentiate twice."""

    def closure() -> Tensor:
        parameter.grad = None
        with torch.enable_grad():
            # In this loss every weight has its own slope and a curvature of 1.
            loss: Tensor = (slopes * parameter + parameter.square() / 2).sum()
            loss.backward(create_graph=True)  # type: ignore[no-untyped-call]
        return loss

    closure()
    unhooked_step(optimizer)(closure)


def _copy_on(
    inner: Optimizer, weight: Tensor, values: Tensor, *, keeps_entry: bool
) -> tuple[Optimizer, Parameter]:
    """Return a copy of ``inner``, and its only parameter.

    In the copy, this parameter replaces ``weight``. It has no state, or the initial state that some
    optimizers create at construction: like the state of ``weight``, with one value in every entry.
    """
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    parameter = Parameter(values.to(weight.device, wide, copy=True))
    vars(parameter).update({k: v for k, v in vars(weight).items() if not isinstance(v, Tensor)})
    memo: dict[int, Any] = {
        id(other): Parameter(other.detach().new_zeros(1))
        for group in inner.param_groups
        for other in group["params"]
    }
    memo[id(weight)] = parameter
    clone = _copy(inner, memo)
    for group in clone.param_groups:
        group["params"][:] = [own for own in group["params"] if own is parameter]
    clone.param_groups[:] = [group for group in clone.param_groups if group["params"]]
    if keeps_entry:
        clone.state[parameter] = {
            name: parameter.new_full(parameter.shape, common_value(value))
            if isinstance(value, Tensor) and value.shape == weight.shape
            else copy.deepcopy(value)
            for name, value in inner.state.get(weight, {}).items()
        }
    return clone, parameter


def _copy(optimizer: Optimizer, memo: dict[int, Any]) -> Optimizer:
    """Copy an optimizer with all attributes.

    Its own ``__deepcopy__`` would leave out attributes that torch's class does not have.
    """
    clone: Optimizer = object.__new__(type(optimizer))
    memo[id(optimizer)] = clone
    # State whose keys are not parameters is common to all parameters, and is copied.
    state: dict[Any, Any] = dict(optimizer.state)
    common = {key: value for key, value in state.items() if not isinstance(key, Tensor)}
    memo[id(optimizer.state)] = defaultdict(dict, copy.deepcopy(common))
    for name, value in vars(optimizer).items():
        if name.startswith("_optimizer_"):
            memo[id(value)] = OrderedDict()
        elif isinstance(value, Optimizer) and id(value) not in memo:
            _copy(value, memo)
    vars(clone).update(copy.deepcopy(vars(optimizer), memo))
    return clone


def _at(where: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.cpu()[..., where] for tensor in tensors]


def _equal(tensors: list[Tensor], others: list[Tensor]) -> bool:
    """Whether tensors are equal, except for rounding that depends on the order of a sum."""
    return len(tensors) == len(others) and all(
        torch.allclose(
            mine.detach(), other.detach().cpu(), rtol=1e-3, atol=1e-5 * float(mine.abs().max())
        )
        for mine, other in zip(tensors, others, strict=True)
    )


def _is_plain(tensor: Tensor) -> bool:
    # Codes and wrapped low-bit tensors can't be compared without the scale of their block.
    return type(tensor) in (Tensor, Parameter) and tensor.is_floating_point()


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Restore the random state of Python, NumPy and torch: some optimizers draw from these."""
    of_python, of_numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        in_use = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        devices = range(torch.cuda.device_count() if in_use else 0)
        with torch.random.fork_rng(devices):
            torch.manual_seed(0)
            random.seed(0)
            np.random.seed(0)  # noqa: NPY002
            yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)  # noqa: NPY002
