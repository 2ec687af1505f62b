"""Batch normalisation in training, of maps in the kernels' layout."""

import weakref
from collections import OrderedDict
from collections.abc import MutableMapping
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from sparseopt.speedup.kernels.calls import DTYPES, empty_map, kernel_layout
from sparseopt.speedup.kernels.library import library, raise_if, threads
from sparseopt.speedup.kernels.ops import plain_call

__all__ = ["batch_norm", "knows_batch_norm", "relu"]

_STATISTICS = 5  # numbers for each channel: struct Statistics of batch_norm.h
_WORK = 8  # multiply-adds in the time of one element, which is the time of a memory access


class _Origin(NamedTuple):
    """What a normalised map was computed from.

    Attributes:
        tensors: input, weight, bias and statistics.
        saving: the hooks on saved tensors at that time; activation checkpointing sets such hooks.
    """

    tensors: tuple[Tensor, Tensor | None, Tensor | None, Tensor]
    saving: Any


#: The origin of each normalised map that no nonlinearity has taken yet.
_ORIGINS: Final[MutableMapping[Tensor, _Origin]] = WeakTensorKeyDictionary()


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
        # torch raises an error for a single value in each channel, which has no variance.
        and x.numel() > x.shape[1]
        and all(
            vector is None
            or (
                vector.dtype == torch.float32
                and vector.device.type == "cpu"
                and vector.is_contiguous()
            )
            for vector in of_channels
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
        eps: the number that is added to the variance.

    Returns:
        The map, in the layout and the dtype of ``x``; the mean of each channel, and its variance
        with the divisor ``n - 1``, (C,), float32, without gradients.

    References:
        Ioffe and Szegedy, "Batch Normalization", ICML 2015, algorithm 1.
    """
    function: Any = _BatchNorm
    y, statistics = function.apply(x, weight, bias, eps)
    if y.requires_grad:
        # A nonlinearity that follows reads this; see relu().
        _ORIGINS[y] = _Origin((x, weight, bias, statistics), _hooks_on_saved_tensors())
    mean, _, variance, *_ = statistics.unbind()
    return y, mean, variance


def relu(y: Tensor, *, inplace: bool) -> Tensor | None:
    """Return the positive part of a result of :func:`batch_norm`, with one backward pass for both.

    The gradient of ``y`` itself is computed only where other code could see it: if the tensor ``y``
    still exists in the backward pass, or if it has hooks.

    Args:
        y: a map.
        inplace: whether to change ``y`` itself.

    Returns:
        The map; ``None`` if :func:`batch_norm` did not make ``y``, if ``y`` has hooks or was
        changed, or if activation checkpointing repeats only one of the two.
    """
    origin = _ORIGINS.pop(y, None)
    if origin is None or y._version or y._backward_hooks or y.retains_grad:
        return None
    if not (torch.is_grad_enabled() and plain_call((y,))):
        return None
    if origin.saving != _hooks_on_saved_tensors():
        return None
    hooks = None if inplace else _hooks_of(y)
    function: Any = _ReluOfNormalised
    result: Tensor = function.apply(y, *origin.tensors, hooks)
    return result


def _hooks_on_saved_tensors() -> Any:
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def _hooks_of(y: Tensor) -> dict[int, Any]:
    """Return the dictionary, empty now, to which ``y.register_hook`` adds hooks."""
    hooks: OrderedDict[int, Any] = OrderedDict()
    y._backward_hooks = hooks
    y.grad_fn._register_hook_dict(y)  # type: ignore[union-attr]
    return hooks


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor]:
        y = empty_map(x, x.shape[1], x.shape[2:])
        statistics = x.new_empty((_STATISTICS, x.shape[1]), dtype=torch.float32)
        failed = library().sparseopt_batch_norm(
            x.data_ptr(),
            _address(weight),
            _address(bias),
            eps,
            y.data_ptr(),
            statistics.data_ptr(),
            *_size(x),
        )
        raise_if(failed)
        ctx.save_for_backward(x, weight, statistics)
        ctx.eps = eps
        ctx.mark_non_differentiable(statistics)
        ctx.set_materialize_grads(False)
        return y, statistics

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:  # the backward pass of the nonlinearity has computed the gradients
            return None, None, None, None
        x, weight, statistics = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        # torch computes derivatives of higher order.
        if torch.is_grad_enabled() or not plain_call((grad, x)):
            return (*_by_torch(grad, x, weight, statistics, ctx.eps, wanted), None)
        return (*_gradients(grad, x, statistics, wanted, relu=False), None)


class _ReluOfNormalised(torch.autograd.Function):
    """The positive part of a normalised map, with the gradients of the normalisation's inputs."""

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        statistics: Tensor,
        hooks: dict[int, Any] | None,
    ) -> Tensor:
        """Change ``y`` itself if ``hooks`` is ``None``; otherwise they are the hooks of ``y``."""
        if hooks is None:
            ctx.mark_dirty(y)
            result = y.relu_()
        else:
            result = y.relu()
        # The weak reference is alive as long as Python or a graph refers to the tensor.
        ctx.y = None if hooks is None else weakref.ref(y)
        ctx.hooks = hooks
        ctx.save_for_backward(x, statistics, result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, statistics, result = ctx.saved_tensors
        is_seen = ctx.y is not None and (ctx.y() is not None or ctx.hooks)
        if is_seen or torch.is_grad_enabled() or not plain_call((grad, x)):
            masked = torch.ops.aten.threshold_backward(grad, result, 0)
            return masked, None, None, None, None, None
        wanted = ctx.needs_input_grad[1:4]
        return (None, *_gradients(grad, x, statistics, wanted, relu=True), None, None)


def _gradients(
    grad: Tensor, x: Tensor, statistics: Tensor, wanted: tuple[bool, ...], *, relu: bool
) -> tuple[Tensor | None, ...]:
    """Return the gradients of map, weight and bias; ``None`` for those that are not wanted."""
    grad = kernel_layout(grad.to(x.dtype))
    dx = empty_map(x, x.shape[1], x.shape[2:])
    dweight, dbias = x.new_empty((2, x.shape[1]), dtype=torch.float32).unbind()
    failed = library().sparseopt_batch_norm_backward(
        x.data_ptr(),
        grad.data_ptr(),
        statistics.data_ptr(),
        relu,
        dx.data_ptr(),
        dweight.data_ptr(),
        dbias.data_ptr(),
        *_size(x),
    )
    raise_if(failed)
    gradients = zip((dx, dweight, dbias), wanted, strict=True)
    return tuple(gradient if is_wanted else None for gradient, is_wanted in gradients)


def _by_torch(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    statistics: Tensor,
    eps: float,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Return the same gradients, computed by torch, which can differentiate them again."""
    mean, inverse, *_ = statistics.unbind()
    found: tuple[Tensor | None, ...] = torch.ops.aten.native_batch_norm_backward(
        grad, x, weight, None, None, mean, inverse, True, eps, list(wanted)
    )
    return tuple(
        gradient if is_wanted else None for gradient, is_wanted in zip(found, wanted, strict=True)
    )


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _size(x: Tensor) -> tuple[int, int, bool, int]:
    """Return the channels, the elements of each, whether they are bfloat16, and the threads."""
    channels = x.shape[1]
    count = x.numel() // channels
    return channels, count, x.dtype is torch.bfloat16, threads(x.numel() * _WORK)
