"""Closures of ``step()``, evaluated as torch's own optimizers evaluate them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["evaluate"]


def evaluate(closure: Callable[[], Any] | None) -> Any:
    """Call ``closure`` with gradients enabled and return its result; ``None`` without a closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
