"""Batch normalisation in training, of maps in the kernels' layout."""

from typing import Any

import torch
from torch import Tensor

from sparseopt.speedup.kernels.calls import DTYPES, empty_map, kernel_layout
from sparseopt.speedup.kernels.library import library, raise_if, threads
from sparseopt.speedup.kernels.ops import plain_call

__all__ = ["batch_norm", "knows_batch_norm"]

_WORK = 8  # multiply-adds in the time of one element: it is memory that is waited for


def knows_batch_norm(x: Tensor, *of_channels: Tensor | None) -> bool:
    """Whether :func:`batch_norm` takes a map in the kernels' layout.

    Args:
        x: (N, C, H, W).
        of_channels: weight, bias and running statistics, each (C,) or ``None``.
    """
    return (
        not torch.compiler.is_compiling()
        and plain_call((x, *of_channels))
        and x.device.type == "cpu"
        and x.dtype in DTYPES
        # Of a single value torch says that it has no variance.
        and x.numel() > x.shape[1]
        and all(
            one is None
            or (one.dtype == torch.float32 and one.device.type == "cpu" and one.is_contiguous())
            for one in of_channels
        )
    )


def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise by the statistics of the batch, as a layer in training does.

    Args:
        x: (N, C, H, W) in the kernels' layout, float32 or bfloat16.
        weight: (C,), float32, or ``None``.
        bias: (C,), float32, or ``None``.
        eps: what is added to the variance.

    Returns:
        The map, in the layout and the dtype of ``x``; the mean of each channel, and its variance
        with the divisor ``n - 1``, (C,), float32, without gradients.

    References:
        Ioffe and Szegedy, "Batch Normalization", ICML 2015, algorithm 1.
    """
    function: Any = _BatchNorm
    y, mean, variance = function.apply(x, weight, bias, eps)
    return y, mean, variance


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        channels, size = x.shape[1], x.shape[2:]
        y = empty_map(x, channels, size)
        mean, inverse, variance = x.new_empty((3, channels), dtype=torch.float32).unbind()
        failed = library().sparseopt_batch_norm(
            x.data_ptr(),
            _address(weight),
            _address(bias),
            eps,
            y.data_ptr(),
            mean.data_ptr(),
            inverse.data_ptr(),
            variance.data_ptr(),
            *_size(x),
        )
        raise_if(failed)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        # Derivatives of higher order are torch's.
        if torch.is_grad_enabled() or not plain_call((grad, x)):
            return (*_by_torch(grad, x, weight, mean, inverse, ctx.eps, wanted), None)
        grad = kernel_layout(grad.to(x.dtype))
        dx = empty_map(x, x.shape[1], x.shape[2:])
        dweight, dbias = x.new_empty((2, x.shape[1]), dtype=torch.float32).unbind()
        failed = library().sparseopt_batch_norm_backward(
            x.data_ptr(),
            grad.data_ptr(),
            _address(weight),
            mean.data_ptr(),
            inverse.data_ptr(),
            dx.data_ptr(),
            dweight.data_ptr(),
            dbias.data_ptr(),
            *_size(x),
        )
        raise_if(failed)
        made = zip((dx, dweight, dbias), wanted, strict=True)
        return (*(one if is_wanted else None for one, is_wanted in made), None)


def _by_torch(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    inverse: Tensor,
    eps: float,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    found: tuple[Tensor | None, ...] = torch.ops.aten.native_batch_norm_backward(
        grad, x, weight, None, None, mean, inverse, True, eps, list(wanted)
    )
    return tuple(one if is_wanted else None for one, is_wanted in zip(found, wanted, strict=True))


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _size(x: Tensor) -> tuple[int, int, bool, int]:
    """Channels, elements of each, whether they are bfloat16, and threads."""
    channels = x.shape[1]
    count = x.numel() // channels
    return channels, count, x.dtype is torch.bfloat16, threads(x.numel() * _WORK)
