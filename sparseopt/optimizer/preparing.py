"""A hook that lets a method prepare the model for the forward pass of an update step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from sparseopt.utils.compile import never_compiled
from sparseopt.utils.hooks import WeakHook

__all__ = ["before_training_forward"]


def before_training_forward(model: nn.Module, act: Callable[[], Any]) -> RemovableHandle:
    """Call ``act``, a method that is held weakly, before each training forward pass of ``model``.

    A pass without gradients, in evaluation mode or for an export is none.
    """
    return model.register_forward_pre_hook(_Preparing(act))


class _Preparing(WeakHook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        # A graph that is exported is of the model as it is.
        if module.training and torch.is_grad_enabled() and not torch.compiler.is_exporting():
            self._prepare()

    @never_compiled
    def _prepare(self) -> None:
        self.act()
