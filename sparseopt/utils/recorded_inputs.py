"""Records one real training input, so that it can be replayed."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sparseopt.utils.hooks import Handle, OwnHook, call_before_forward
from sparseopt.utils.tensors import is_strided

__all__ = ["InputRecorder"]


@dataclass(frozen=True)
class _TensorSpec:
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class InputRecorder(OwnHook):
    """A one-shot hook on a model, which records the first training input.

    Of tensors of floating-point numbers, only shape, type and device are kept. Integers and bools
    are copied with their values, because other values would often be wrong: they are indices,
    lengths and masks. So are tensors of a sparse layout, whose indices matter. Other arguments are
    kept as they are. A pass under a transform of :mod:`torch.func` is not recorded.

    In a compiled model, the hook is part of the compiled code. There it records every input and
    stays until :meth:`remove`, because a hook that removes itself, or that asks whether an input is
    recorded already, would make torch compile the model a second time.
    """

    def __init__(self, model: nn.Module) -> None:
        self._recorded: tuple[Any, Any] | None = None
        self._handle: Handle | None = call_before_forward(model, self._record, with_kwargs=True)

    @property
    def has_inputs(self) -> bool:
        """Whether an input is recorded."""
        return self._recorded is not None

    def inputs(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return positional and keyword arguments, with zeros for floating-point numbers."""
        assert self._recorded is not None
        args, kwargs = tree_map(_materialise, self._recorded)
        return args, kwargs

    def remove(self) -> None:
        """Remove the hook from the model."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def __deepcopy__(self, memo: dict[int, Any]) -> InputRecorder:
        clone = copy.copy(self)
        memo[id(self)] = clone
        clone._handle = copy.deepcopy(self._handle, memo)
        try:
            clone._recorded = copy.deepcopy(self._recorded, memo)
        except (RuntimeError, TypeError):
            # Objects of the user's classes may hold what can't be copied, such as activations.
            clone._recorded = None
        return clone

    def _record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_exporting() or not torch.is_grad_enabled():
            return
        if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
            return
        self._recorded = tree_map(_describe, (args, kwargs))
        if not torch.compiler.is_compiling():
            self.remove()


def _describe(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    is_number = value.is_floating_point() or value.is_complex()
    if is_number and is_strided(value):
        return _TensorSpec(value.shape, value.dtype, value.device)
    # A copy, because training loops reuse their tensors; compiled code would copy at every pass.
    return value if torch.compiler.is_compiling() else value.detach().clone()


def _materialise(value: Any) -> Any:
    if isinstance(value, _TensorSpec):
        return torch.zeros(value.shape, dtype=value.dtype, device=value.device)
    # A model may write into its inputs.
    return value.clone() if isinstance(value, Tensor) else value
