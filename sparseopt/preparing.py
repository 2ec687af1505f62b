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
    weak = weakref.WeakMethod(act)

    @never_compiled
    def prepare() -> None:
        method = weak()
        if method is not None:
            method()

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        if module.training and torch.is_grad_enabled():
            prepare()

    return model.register_forward_pre_hook(hook)
