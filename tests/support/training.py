"""Training loops of a few steps."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from sparseopt import SparseOptimizer
from tests.support.nets import loss_of, make


def plain(optimizer: Optimizer) -> Optimizer:
    """The optimizer that does the arithmetic."""
    return optimizer.inner if isinstance(optimizer, SparseOptimizer) else optimizer


def train_step(model: nn.Module, optimizer: Optimizer, index: int) -> torch.Tensor:
    """One step on batch `index`, by closure where the optimizer wants one."""

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, index)
        loss.backward()
        return loss

    if isinstance(plain(optimizer), torch.optim.LBFGS):
        return optimizer.step(closure)
    loss = closure()
    optimizer.step()
    return loss


def train(
    model: nn.Module,
    optimizer: Optimizer,
    steps: int,
    *,
    start: int = 0,
    after: Callable[[int], Any] | None = None,
) -> None:
    """Steps `start + 1` to `start + steps`, counted as `SparseOptimizer` counts them."""
    for t in range(start + 1, start + steps + 1):
        train_step(model, optimizer, t)
        if after is not None:
            after(t)


def backward(model: nn.Module, index: int) -> None:
    """Fresh gradients of batch `index`."""
    model.zero_grad()
    loss_of(model, index).backward()


def dense_gradients(model: nn.Module, index: int) -> dict[str, torch.Tensor]:
    """Gradients of the same weights from a copy without hooks."""
    copy = make(type(model))
    for mine, theirs in zip(copy.parameters(), model.parameters(), strict=True):
        mine.data = theirs.detach().clone(memory_format=torch.preserve_format)
    backward(copy, index)
    return {name: p.grad for name, p in copy.named_parameters()}


def named(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}
