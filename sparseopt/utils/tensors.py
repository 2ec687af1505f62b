"""Questions about a tensor that torch answers only for some kinds of tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["is_strided", "version_of"]


def is_strided(value: Any) -> bool:
    """Whether a value is a tensor of ordinary memory, neither sparse nor nested."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_nested


def version_of(tensor: Tensor) -> int:
    """Return autograd's count of writes to a tensor; 0 if it was made in inference mode."""
    return 0 if tensor.is_inference() else tensor._version
