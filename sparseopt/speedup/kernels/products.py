"""Convolution and linear layer with the live weights only, from a dense weight and its lists."""

import torch
from torch import Tensor

from sparseopt.speedup.kernels import calls, ops
from sparseopt.speedup.kernels.formats import LiveLists

__all__ = ["conv2d", "linear"]


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, lists: LiveLists) -> Tensor:
    """Return a 2-dimensional convolution, computed with the live weights only.

    ``lists`` has stride, padding and dilation. Under CPU autocast the input becomes bfloat16. Sums
    are float32.

    Args:
        x: (N, C, H, W), float32 or bfloat16, any strides. Strides (1, HWN, WN, N) need no copy.
        weight: (out, C, height, width), float32 or bfloat16, any strides. Its values at positions
            that are not live are ignored, and its gradient there is zero.
        bias: (out,), or ``None``.
        lists: The lists of live weights.

    Returns:
        (N, out, H', W') in the dtype of the input, with strides (1, H'W'N, W'N, N).

    Raises:
        TypeError: If a dtype is neither float32 nor bfloat16.
        ValueError: If shapes do not fit the lists.
        RuntimeError: If there are no kernels on this machine.

    Example:
        >>> import torch
        >>> from sparseopt.speedup import kernels
        >>> weight = torch.ones(1, 1, 3, 3)
        >>> lists = kernels.LiveLists(weight.shape, padding=1)
        >>> if kernels.available():
        ...     lists.update(torch.tensor([4]), version=1)  # the middle of the kernel
        ...     x = torch.arange(4.0).view(1, 1, 2, 2)
        ...     assert kernels.conv2d(x, weight, None, lists).equal(x)
    """
    if x.dim() != 4:
        raise ValueError(f"x must have the shape (N, C, H, W), not {tuple(x.shape)}")
    x = calls.kernel_layout(_autocast(x))
    return ops.conv2d(x, _values(weight, x.dtype, lists), bias, lists.tensor, lists.layout)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, lists: LiveLists) -> Tensor:
    """Return a linear layer's result, computed with the live weights only.

    Under CPU autocast the input becomes bfloat16. Sums are float32.

    Args:
        x: (..., in), float32 or bfloat16.
        weight: (out, in), float32 or bfloat16, any strides. Its values at positions that are not
            live are ignored, and its gradient there is zero.
        bias: (out,), or ``None``.
        lists: The lists of live weights.

    Returns:
        (..., out) in the dtype of the input, contiguous.

    Raises:
        TypeError: If a dtype is neither float32 nor bfloat16.
        ValueError: If shapes do not fit the lists.
        RuntimeError: If there are no kernels on this machine.
    """
    x = _autocast(x)
    return ops.linear(x, _values(weight, x.dtype, lists), bias, lists.tensor, lists.layout)


def _autocast(x: Tensor) -> Tensor:
    if not torch.is_autocast_enabled("cpu"):
        return x
    dtype = torch.get_autocast_dtype("cpu")
    if dtype not in calls.DTYPES:
        raise TypeError(f"the kernels support autocast to bfloat16, not to {dtype}")
    return x.to(dtype)


def _values(weight: Tensor, dtype: torch.dtype, lists: LiveLists) -> Tensor:
    """Return the live weights: gathered at every call in training, cached otherwise."""
    training = torch.is_grad_enabled() and weight.requires_grad
    # An inference tensor has no version, so that a write to it would not be noticed.
    if training or not ops.plain_call((weight,)) or weight.is_inference():
        return ops.live_values(weight, lists.tensor, lists.layout)
    return lists.cached(
        (weight.data_ptr(), weight._version, dtype),
        lambda: calls.live_values(weight, lists.tensor, lists.layout).to(dtype),
    )
