"""Finds state with one value a weight by a permutation, not by its name.

The indices of weights and gradients are permuted along every axis. State with one value for each
weight is permuted in the same way. Moments in another basis, codes of a block and factors are not.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.optim import Optimizer

from tests.support.seeding import seed_torch

STEPS = 5
#: The optimizer steps with its learning rate times this factor.
LITTLE = 1e-5

Build = Callable[[list[torch.nn.Parameter]], Optimizer]
Deal = Callable[[torch.Tensor], torch.Tensor]


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """A tensor of the state, or those in a container."""
    if torch.is_tensor(value):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from tensors_in(inner)
    elif isinstance(value, (list, tuple, deque)):
        for inner in value:
            yield from tensors_in(inner)


def tensors_by_path(value: Any, path: str = "") -> dict[str, list[torch.Tensor]]:
    """All tensors of a state, by the keys of the dictionaries that they are in."""
    if torch.is_tensor(value):
        return {path: [value]}
    found: dict[str, list[torch.Tensor]] = {}
    pairs = value.items() if isinstance(value, dict) else []
    if isinstance(value, (list, tuple, deque)):
        pairs = [(None, inner) for inner in value]
    for key, inner in pairs:
        deeper = path if key is None else f"{path}.{key}".removeprefix(".")
        for where, tensors in tensors_by_path(inner, deeper).items():
            found.setdefault(where, []).extend(tensors)
    return found


def names_per_weight(build: Build, shape: tuple[int, ...]) -> dict[str, bool]:
    """Return, by path, whether state that has the shape of a parameter is one value a weight.

    Weights are set to new values before every step, and each step is short. So an update that
    depends on the full matrix, as Muon's does, does not change what is compared.

    Args:
        build: makes the optimizer of a list of parameters.
        shape: the shape of the parameter.
    """
    generator = torch.Generator().manual_seed(0)
    course = [
        (torch.randn(shape, generator=generator), torch.randn(shape, generator=generator))
        for _ in range(STEPS)
    ]
    orders = [torch.randperm(size, generator=generator) for size in shape]

    def dealt(tensor: torch.Tensor) -> torch.Tensor:
        for axis, order in enumerate(orders, start=tensor.ndim - len(orders)):
            tensor = tensor.index_select(axis, order)
        return tensor

    straight = _state_after(build, course)
    permuted = _state_after(build, [(dealt(weight), dealt(slope)) for weight, slope in course])
    found = {}
    for path, tensors in straight.items():
        pairs = zip(tensors, permuted[path], strict=True)
        shaped = [(one, other) for one, other in pairs if has_shape(one, shape)]
        if shaped:
            found[path] = all(_is_dealt(one, other, dealt) for one, other in shaped)
    return found


def has_shape(tensor: torch.Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a tensor has the shape of a parameter, or several of that shape in one."""
    return len(shape) > 1 and tensor.shape[-len(shape) :] == shape


def _is_dealt(one: torch.Tensor, other: torch.Tensor, dealt: Deal) -> bool:
    # Codes and wrapped low-bit tensors have no meaning without the scale of their block.
    if type(one) is not torch.Tensor or not one.is_floating_point():
        return False
    # Norms are sums, and their rounding depends on the order of the terms.
    one, other = dealt(one.detach()), other.detach()
    return torch.allclose(one, other, rtol=1e-3, atol=1e-5 * float(one.abs().max()))


def _state_after(
    build: Build, course: list[tuple[torch.Tensor, torch.Tensor]]
) -> dict[str, list[torch.Tensor]]:
    """Step on a separable loss, of which every weight has its own slope and a curvature of 1."""
    seed_torch(0)
    parameter = torch.nn.Parameter(course[0][0].clone())
    optimizer = build([parameter])
    switch_to_training(optimizer)
    for group in optimizer.param_groups:
        if isinstance(group.get("lr"), float):
            group["lr"] *= LITTLE
    for weight, slope in course:
        with torch.no_grad():
            parameter.copy_(weight)

        def closure(slope: torch.Tensor = slope) -> torch.Tensor:
            optimizer.zero_grad()
            with torch.enable_grad():
                loss = (slope * parameter + parameter.square() / 2).sum()
                loss.backward(create_graph=needs_graph(optimizer))
            return loss

        if needs_closure(optimizer):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
    return tensors_by_path(optimizer.state[parameter])


def needs_closure(optimizer: Optimizer) -> bool:
    """Whether `step()` evaluates the model itself."""
    return type(optimizer).__name__ in {"AliG", "LBFGS"}


def needs_graph(optimizer: Optimizer) -> bool:
    """Whether `step()` differentiates the gradient once more."""
    return type(optimizer).__name__ in {"AdaHessian", "Adahessian", "SophiaH"}


def switch_to_training(optimizer: Optimizer) -> None:
    """Call `train()` of optimizers that have it: schedule-free ones."""
    if hasattr(optimizer, "train"):
        optimizer.train()
