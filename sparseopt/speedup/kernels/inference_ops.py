"""The kernels for inference as torch operators: a product and its epilogue in one pass.

They are registered with ``torch.library``, so that ``torch.export`` and ``torch.compile`` see one
operator. Ordinary eager calls bypass the dispatcher. These operators have no derivatives: if a
derivative is needed, operators that have one compute the same result. Those have no forward-mode
derivative, and raise an error if it is needed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sparseopt.speedup.kernels import calls, ops

__all__ = ["affine", "conv2d", "linear"]


def _registered(schema: str, call: Callable[..., Tensor], fake: Callable[..., Tensor]) -> Any:
    name, _, signature = schema.partition("(")
    operator = torch.library.custom_op(
        f"sparseopt::{name}", call, mutates_args=(), device_types="cpu", schema=f"({signature}"
    )
    operator.register_fake(fake)
    return operator


def _fake_map(x: Tensor, layout: Sequence[int]) -> Tensor:
    return calls.empty_map(x, layout[0], calls.out_size(x.shape[2:], layout))


_conv2d = _registered(
    "conv2d_epilogue(Tensor x, Tensor values, Tensor? bias, Tensor lists, int[] layout, "
    "Tensor? residual, float[]? bounds) -> Tensor",
    calls.conv2d,
    lambda x, values, bias, lists, layout, residual, bounds: _fake_map(x, layout),
)
_linear = _registered(
    "linear_epilogue(Tensor x, Tensor values, Tensor? bias, Tensor lists, int[] layout, "
    "float[]? bounds) -> Tensor",
    calls.linear,
    lambda x, values, bias, lists, layout, bounds: x.new_empty((*x.shape[:-1], layout[0])),
)
_affine = _registered(
    "affine(Tensor x, Tensor factor, Tensor shift, float[]? bounds) -> Tensor",
    calls.affine,
    lambda x, factor, shift, bounds: calls.empty_map(x, x.shape[1], x.shape[2:]),
)


def conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    lists: Tensor,
    layout: Sequence[int],
    residual: Tensor | None,
    bounds: Sequence[float] | None,
) -> Tensor:
    """Return ``clamp(conv2d(x) + residual, *bounds)``, in the kernels' layout."""
    given = (x, residual)
    if _wants_derivative(given):
        y = ops.conv2d(x, values.float(), bias, lists, layout)
        return _clamped(y if residual is None else y + residual, bounds)
    call = calls.conv2d if ops.plain_call(given) else _conv2d
    result: Tensor = call(x, values, bias, lists, layout, residual, bounds)
    return result


def linear(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    lists: Tensor,
    layout: Sequence[int],
    bounds: Sequence[float] | None,
) -> Tensor:
    """Return ``clamp(linear(x), *bounds)``."""
    if _wants_derivative((x,)):
        return _clamped(ops.linear(x, values.float(), bias, lists, layout), bounds)
    call = calls.linear if ops.plain_call((x,)) else _linear
    result: Tensor = call(x, values, bias, lists, layout, bounds)
    return result


def affine(x: Tensor, factor: Tensor, shift: Tensor, bounds: Sequence[float] | None) -> Tensor:
    """Return ``clamp(x * factor + shift, *bounds)`` by channel, in the kernels' layout."""
    if _wants_derivative((x,)):
        by_channel = (-1, 1, 1)
        return _clamped((x * factor.view(by_channel) + shift.view(by_channel)).to(x.dtype), bounds)
    call = calls.affine if ops.plain_call((x,)) else _affine
    result: Tensor = call(x, factor, shift, bounds)
    return result


def _wants_derivative(tensors: Sequence[Tensor | None]) -> bool:
    if ops.is_differentiated():
        return True
    return torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )


def _clamped(y: Tensor, bounds: Sequence[float] | None) -> Tensor:
    return y if bounds is None else y.clamp(*bounds)
