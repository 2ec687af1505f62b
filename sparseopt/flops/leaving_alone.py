"""Running a model without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["undisturbed"]


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Set eval mode, and put everything back: modes, buffers, random state, torch's own settings.

    Fused kernels that would hide linear maps are off meanwhile.
    """
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(_same_modes(model))
        stack.enter_context(_same_buffers(model))
        stack.enter_context(_no_cached_casts())
        stack.enter_context(_no_attention_fast_path())
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(_switched_off(torch.backends.mkldnn))
            stack.enter_context(_switched_off(torch.backends.cudnn))
        model.eval()
        yield


@contextmanager
def _same_modes(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _same_buffers(model: nn.Module) -> Iterator[None]:
    """Restore buffers that forward wrote to, and those that it replaced."""
    places = [(module, dict(module._buffers)) for module in model.modules()]
    values = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for module, buffers in places:
            module._buffers.clear()
            module._buffers.update(buffers)
        with torch.no_grad():
            for buffer, saved in values:
                if not _same_values(buffer, saved):
                    buffer.copy_(saved)


def _same_values(left: Tensor, right: Tensor) -> bool:
    # Writing without need would raise the version that autograd checks.
    return left.shape == right.shape and torch.equal(left, right)


@contextmanager
def _no_cached_casts() -> Iterator[None]:
    """Keep autocast from reusing casts, which would not be seen to be weights.

    A cast that is cached here would have no gradient in the training that goes on afterwards.
    """
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


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
