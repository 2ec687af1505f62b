"""Writing a value wherever a mask is false, whatever is there."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

__all__ = ["fill_where_false_"]

INTEGERS: Final = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fill_where_false_(tensor: Tensor, mask: Tensor, fill: float) -> None:
    """Write ``fill`` into ``tensor`` wherever ``mask``, bool and of its shape, is false.

    Nothing is multiplied, so NaN and infinities go as well.

    Example:
        >>> weights = torch.tensor([1.0, float("nan"), 3.0])
        >>> fill_where_false_(weights, torch.tensor([True, False, True]), 0.0)
        >>> weights
        tensor([1., 0., 3.])
    """
    if tensor.grad_fn is not None:
        # With differentiable=True this is one more operation of the step's graph.
        with torch.enable_grad():
            tensor.masked_fill_(~mask, fill)
        return
    tensor = tensor.detach()
    if fill == 0.0 and tensor.device.type == "cpu":
        # On a CPU masked_fill_() branches at every entry; an AND of the bits does not.
        integer = INTEGERS[tensor.element_size()]
        all_bits = mask.view(torch.int8).to(integer, copy=True).neg_()
        tensor.view(integer).bitwise_and_(all_bits)
    else:
        tensor.masked_fill_(~mask, fill)
