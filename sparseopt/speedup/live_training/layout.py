"""The kernels' layout of maps: logical (N, C, H, W) whose memory is (C, H, W, N).

Element-wise operations keep the strides, so that a map keeps its layout in a user's own code.
Operations that are slow on these strides get a view of the same memory with another shape: (1, C,
HW, N) for normalisation by channel, (C, N, H, W) in channels-last format for pooling, and (C, HWN)
for a product with a matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sparseopt.speedup import kernels
from sparseopt.speedup.kernels import calls
from sparseopt.speedup.kernels.calls import kernel_layout, standard_layout
from sparseopt.speedup.kernels.ops import plain_call
from sparseopt.utils.nested import leaves, map_leaves
from sparseopt.utils.tensors import is_strided

__all__ = [
    "by_channel",
    "from_channels",
    "in_kernel_layout",
    "out_of_kernel_layout",
    "to_channels_last",
    "to_kernel_layout",
]


def in_kernel_layout(x: Tensor) -> bool:
    """Whether ``x`` is a map in the kernels' layout, with more than one sample.

    A batch of one sample has the same memory in both layouts.
    """
    return x.dim() == 4 and x.shape[0] > 1 and x.permute(1, 2, 3, 0).is_contiguous()


def by_channel(x: Tensor) -> Tensor:
    """View a map in the kernels' layout as (1, C, HW, N), contiguous."""
    batch, channels, height, width = x.shape
    return x.permute(1, 2, 3, 0).reshape(1, channels, height * width, batch)


def from_channels(values: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """Return a contiguous tensor (..., C, HW, N) or (C, HWN) as a map that is not a view.

    The map shares memory with ``values``, which must be new, and which no backward pass may need.

    Args:
        values: the entries.
        shape: the shape of the map, (N, C, H, W).
    """
    if torch.compiler.is_compiling() or not plain_call((values,)):
        return _as_map(values, shape)
    function: Any = _FromChannels
    result: Tensor = function.apply(values, shape)
    return result


def _as_map(values: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    batch, channels, height, width = shape
    return values.view(channels, height, width, batch).permute(3, 0, 1, 2)


def to_channels_last(x: Tensor) -> Tensor:
    """Bring a map into channels-last format, and its gradient back into the kernels' layout."""
    return _moved(x, into_kernel_layout=False)


def to_kernel_layout(x: Tensor) -> Tensor:
    """Bring a map into the kernels' layout, and its gradient into channels-last format."""
    return _moved(x, into_kernel_layout=True)


def out_of_kernel_layout(outputs: Any) -> Any:
    """Return the outputs of a model with contiguous maps in place of maps in the kernels' layout.

    Code that reads the outputs may call ``view``, which does not take the kernels' layout. Outputs
    without such maps stay the same object.
    """
    if not any(map(_is_in_kernel_layout, leaves(outputs))):
        return outputs
    return map_leaves(
        lambda leaf: standard_layout(leaf) if _is_in_kernel_layout(leaf) else leaf, outputs
    )


def _is_in_kernel_layout(leaf: Any) -> bool:
    return is_strided(leaf) and in_kernel_layout(leaf)


class _FromChannels(torch.autograd.Function):
    """Makes a map that is not a view, by ``data``: autograd copies a view that changes in place."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
        ctx.shape = values.shape
        return _as_map(values, shape).data

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return kernel_layout(grad).permute(1, 2, 3, 0).reshape(ctx.shape), None


class _Moved(torch.autograd.Function):
    """Changes the layout of a map, and of its gradient.

    Without it, a dense convolution would get its gradient in strides on which it is slow.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, into_kernel_layout: bool) -> Tensor:
        ctx.back = not into_kernel_layout
        if x.dtype in calls.DTYPES and x.device.type == "cpu" and kernels.available():
            if into_kernel_layout and _lies_in(x, kernel_layout=False):
                return calls.kernel_layout_of_channels_last(x)
            if not into_kernel_layout and _lies_in(x, kernel_layout=True):
                return calls.channels_last_layout(x)
        return _copied(x, into_kernel_layout).data

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _moved(grad, into_kernel_layout=ctx.back), None


def _moved(x: Tensor, *, into_kernel_layout: bool) -> Tensor:
    if _lies_in(x, into_kernel_layout):
        return x
    if torch.compiler.is_compiling() or not plain_call((x,)):
        return _copied(x, into_kernel_layout)
    function: Any = _Moved
    result: Tensor = function.apply(x, into_kernel_layout)
    return result


def _copied(x: Tensor, into_kernel_layout: bool) -> Tensor:
    if into_kernel_layout:
        return kernel_layout(x)
    # torch is fast at each of these two steps.
    return standard_layout(x).contiguous(memory_format=torch.channels_last)


def _lies_in(x: Tensor, kernel_layout: bool) -> bool:
    if kernel_layout:
        return x.permute(1, 2, 3, 0).is_contiguous()
    return x.is_contiguous(memory_format=torch.channels_last)
