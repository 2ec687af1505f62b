"""A copy of a model for measurements: it has no hooks, and its passes have no side effects."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sparseopt.speedup.live_training.layout import out_of_kernel_layout
from sparseopt.utils.hooks import computed_tensors
from sparseopt.utils.nested import leaves
from sparseopt.utils.probe import preserve_model_state

__all__ = ["copy_of_inputs", "copy_to_measure", "training_pass", "untouched_surroundings"]

_HOOKS: Final = tuple(
    name for name, value in vars(nn.Module()).items() if "hooks" in name and isinstance(value, dict)
)


def copy_to_measure(model: nn.Module) -> nn.Module:
    """Return a deep copy without any hooks, and without copies of objects that hooks refer to."""
    memo = computed_tensors(model)
    for module in model.modules():
        for name in _HOOKS:
            hooks = vars(module).get(name)
            if hooks is not None:
                memo[id(hooks)] = type(hooks)()
    return copy.deepcopy(model, memo)


def copy_of_inputs(inputs: Any) -> Any:
    """Return a copy of nested inputs whose tensors belong to no graph."""

    def detached(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.detach().clone().requires_grad_(value.requires_grad)

    return tree_map(detached, inputs)


def training_pass(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Run a model forwards, and backwards from the sum of its outputs.

    Raises:
        ValueError: if no output has a gradient.
    """
    outputs = [
        leaf
        for leaf in leaves(out_of_kernel_layout(model(*args, **kwargs)))
        if isinstance(leaf, Tensor) and leaf.requires_grad and leaf.is_floating_point()
    ]
    if not outputs:
        raise ValueError("the model returns no tensor that has a gradient")
    torch.autograd.backward([output.float().sum() for output in outputs])
    for parameter in model.parameters():
        parameter.grad = None


@contextmanager
def untouched_surroundings(model: nn.Module) -> Iterator[None]:
    """Restore the random states and the cache of autocast, which passes of a copy change."""
    # A user's code may draw from NumPy's old global state.
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with preserve_model_state(model):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
