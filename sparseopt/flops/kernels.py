"""Switching off fused kernels in which the operators that count would not be seen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["no_fused_kernels"]


@contextmanager
def no_fused_kernels(model: nn.Module) -> Iterator[None]:
    """Run attention and the recurrent layers of ``model`` operator by operator in this block."""
    with ExitStack() as stack:
        stack.enter_context(_no_attention_fast_path())
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(_switched_off(torch.backends.mkldnn))
            stack.enter_context(_switched_off(torch.backends.cudnn))
        yield


@contextmanager
def _no_attention_fast_path() -> Iterator[None]:
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def _switched_off(backend: Any) -> Iterator[None]:
    enabled = backend.enabled
    backend.enabled = False
    try:
        yield
    finally:
        backend.enabled = enabled
