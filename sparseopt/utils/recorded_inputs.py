"""Records one real training input, so that it can be replayed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sparseopt.utils.hooks import Handle, OwnHook, call_before_forward

__all__ = ["InputRecorder"]


@dataclass(frozen=True)
class _TensorSpec:
    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class InputRecorder(OwnHook):
    """A one-shot hook on a model, which records the first training input.

    Of tensors of floating-point numbers, only shape, type and device are kept. Integers and bools
    are kept with their values, because other values would often be wrong: they are indices, lengths
    and masks. Other arguments are kept as they are.

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

    def _record(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_exporting() or not torch.is_grad_enabled():
            return
        self._recorded = tree_map(_describe, (args, kwargs))
        if not torch.compiler.is_compiling():
            self.remove()


def _describe(value: Any) -> Any:
    if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
        return _TensorSpec(value.shape, value.dtype, value.device)
    return value


def _materialise(value: Any) -> Any:
    if isinstance(value, _TensorSpec):
        return torch.zeros(value.shape, dtype=value.dtype, device=value.device)
    # A model may write into its inputs.
    return value.clone() if isinstance(value, Tensor) else value
