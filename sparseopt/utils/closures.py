"""Closures of ``step()``, evaluated as torch's own optimizers evaluate them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["evaluate"]


def evaluate(closure: Callable[[], Any] | None) -> Any:
    """Return what ``closure`` returns, evaluated as torch's optimizers do; ``None`` without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
