"""A hook that lets a method prepare the model for the forward pass of an update step."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from sparseopt.compiling import never_compiled

__all__ = ["before_training_forward"]


def before_training_forward(model: nn.Module, act: Callable[[], Any]) -> RemovableHandle:
    """Call ``act``, a method that is held weakly, before each training forward pass of ``model``.

    A pass without gradients or in evaluation mode is none.
    """
    return model.register_forward_pre_hook(_Preparing(act))


class _Preparing:
    """The hook. In a pickle of the model it does nothing, as the optimizer is not in there."""

    def __init__(self, act: Callable[[], Any]) -> None:
        self._act: weakref.WeakMethod[Callable[[], Any]] | None = weakref.WeakMethod(act)

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if module.training and torch.is_grad_enabled():
            self._prepare()

    @never_compiled
    def _prepare(self) -> None:
        act = None if self._act is None else self._act()
        if act is not None:
            act()

    def __getstate__(self) -> dict[str, Any]:
        return {"_act": None}
