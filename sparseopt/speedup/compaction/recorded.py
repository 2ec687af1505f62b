"""Inputs for comparisons, in the shapes of the first training step."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from sparseopt.optimizer.sparse_optimizer import SparseOptimizer
from sparseopt.speedup.equivalence import in_mode
from sparseopt.speedup.inference.masks import Masks
from sparseopt.utils.random import normal

__all__ = ["recorded_inputs"]

#: Number of samples in the shapes of the first training input: enough for BatchNorm.
SAMPLES: Final = 4

_Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def recorded_inputs(model: nn.Module, masks: Masks) -> _Inputs:
    """Return inputs like those of the first training step, on which the model runs.

    Floating-point numbers are random. A few samples are enough, but which dimension is the batch
    can only be guessed. So if the model refuses a few samples, all are used.

    Args:
        model: the full model.
        masks: the optimizer that recorded the inputs.

    Raises:
        ValueError: if no input is recorded yet, or if the model does not run on these inputs.
    """
    recorded = masks.example_inputs() if isinstance(masks, SparseOptimizer) else None
    if recorded is None:
        raise ValueError(
            "compact() has no input yet: pass some, as example_inputs=, or call it after the "
            "first training step of an optimizer that was given the model."
        )
    failure: Exception | None = None
    for args, kwargs in _candidates(model, recorded):
        try:
            with in_mode(model, training=False):
                model(*args, **kwargs)
        except Exception as error:
            failure = failure or error
        else:
            return args, kwargs
    raise ValueError(
        f"example_inputs=None, and model={type(model).__name__}(...) does not run on random "
        "numbers in the shapes of the first training input: pass example_inputs= with inputs that "
        f"it takes. It raised {type(failure).__name__}: {failure}"
    ) from failure


def _candidates(model: nn.Module, recorded: _Inputs) -> Iterator[_Inputs]:
    """Return inputs to try, the most likely first.

    Under autocast the first input may have had another precision than the model, so numbers in the
    precision of the model are tried too.
    """
    tensors = (one for one in tree_leaves(recorded) if isinstance(one, Tensor) and one.dim() > 0)
    first = next(tensors, None)
    batch = None if first is None else len(first)
    own = next((one.dtype for one in model.parameters() if one.is_floating_point()), None)
    args, kwargs = recorded
    uncached = {name: name != "use_cache" and value for name, value in kwargs.items()}
    for inputs in (tree_map(functools.partial(_few, batch), (args, uncached)), (args, uncached)):
        for dtype in (None, own):
            yield tree_map(functools.partial(_random, dtype), inputs)


def _few(batch: int | None, value: Any) -> Any:
    """Return a few samples of a tensor of ``batch`` samples, and all of another, such as a mask."""
    if isinstance(value, Tensor) and value.dim() > 0 and len(value) == batch:
        return value[:SAMPLES]
    return value


def _random(dtype: torch.dtype | None, value: Any) -> Any:
    """Return random numbers like a tensor of numbers; a tensor of one number stays."""
    if not isinstance(value, Tensor) or value.dim() == 0 or not value.is_floating_point():
        return value
    noise = normal(value.shape, torch.Generator().manual_seed(0))
    return noise.to(value.device, dtype or value.dtype)
