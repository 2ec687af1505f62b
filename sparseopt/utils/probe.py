"""Runs a model to learn something about it, and restores the model afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["preserve_buffers", "preserve_model_state"]


@contextmanager
def preserve_model_state(model: nn.Module) -> Iterator[None]:
    """Restore what a forward pass in this block changes: modes, buffers, random state, sharding.

    Gradients are not restored.
    """
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(_same_modes(model))
        stack.enter_context(preserve_buffers(model))
        stack.enter_context(_same_sharding(model))
        stack.enter_context(_no_cached_casts())
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
def preserve_buffers(model: nn.Module) -> Iterator[None]:
    """Restore buffers that the forward pass wrote to or replaced."""
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
    # Each write increases the version counter that autograd checks, so write only what differs.
    return left.shape == right.shape and torch.equal(left, right)


@contextmanager
def _same_sharding(model: nn.Module) -> Iterator[None]:
    """Shard the weights again that FSDP2 gathered in this block.

    FSDP2 keeps the root's weights gathered for a backward pass. Without one, it would use the
    gathered weights after the next step too, when they are outdated.
    """
    if not dist.is_available():
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    gathered_by = [module for module in model.modules() if isinstance(module, FSDPModule)]
    try:
        yield
    finally:
        for module in gathered_by:
            module.reshard()


@contextmanager
def _no_cached_casts() -> Iterator[None]:
    """Switch autocast's cache of casts off in this block.

    A cast made here without gradients would otherwise be reused where gradients are needed.
    """
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)
