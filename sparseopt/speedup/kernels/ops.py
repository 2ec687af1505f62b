"""The kernels as torch operators, with autograd.

Each of the three products of a layer is linear in each of its two arguments, and its derivatives
are the other two products: ``<g, conv(x, v)>``, ``<conv_input(g, v), x>`` and
``<conv_values(x, g), v>`` are the same number. So the same kernels compute derivatives of every
order.

Each operator exists in two forms. One is registered with ``torch.library``, for ``torch.compile``
and other code that traces a program. The other is an ``autograd.Function``, which ordinary eager
calls use because its dispatch costs a third.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad

from sparseopt.speedup.kernels import calls
from sparseopt.speedup.kernels.formats import count_live

__all__ = [
    "conv2d",
    "conv2d_input",
    "conv2d_values",
    "is_differentiated",
    "is_transformed",
    "linear",
    "linear_input",
    "linear_values",
    "live_values",
    "plain_call",
    "scatter_values",
]

_PLAIN = (Tensor, torch.nn.Parameter)


def is_differentiated() -> bool:
    """Whether a functional transform or forward-mode differentiation computes derivatives."""
    if forward_ad._current_level >= 0:
        return True
    if not torch._C._are_functorch_transforms_active():
        return False
    kinds = {one.key() for one in get_interpreter_stack() or ()}
    return bool(kinds & {TransformType.Grad, TransformType.Jvp})


def is_transformed() -> bool:
    """Whether a functional transform or forward-mode differentiation is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def plain_call(args: Sequence[Any]) -> bool:
    """Whether a call is plain: not traced by a compiler or a mode, no transform, no subclass."""
    return not (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or is_transformed()
        or torch._C._get_tracing_state() is not None
        or any(isinstance(a, Tensor) and type(a) not in _PLAIN for a in args)
    )


def _function(name: str, **methods: Callable[..., Any]) -> Callable[..., Tensor]:
    """Return the ``apply`` of a new ``autograd.Function`` with these methods."""
    namespace = {name: staticmethod(method) for name, method in methods.items()}
    return type(f"_{name}", (torch.autograd.Function,), namespace).apply  # type: ignore[attr-defined, no-any-return]


def _operator(
    schema: str,
    call: Callable[..., Tensor],
    fake: Callable[..., Tensor],
    remember: Callable[..., None],
    backward: Callable[..., Any],
) -> Callable[..., Tensor]:
    """Return one function for all forms of an operator; ``schema`` begins with its name.

    A call takes the cheapest form that is correct: under a functional transform a Function with
    ``setup_context``, in traced code the registered operator, with gradients the eager Function,
    and otherwise the kernel itself.
    """
    name, _, signature = schema.partition("(")
    registered = torch.library.custom_op(
        f"sparseopt::{name}",
        call,
        mutates_args=(),
        device_types="cpu",
        schema=f"({signature}",
    )
    registered.register_fake(fake)
    registered.register_autograd(backward, setup_context=remember)

    def forward(ctx: Any, *args: Any) -> Tensor:
        output = call(*args)
        remember(ctx, args, output)
        return output

    # Functional transforms need `setup_context`, which makes eager calls slow.
    eager = _function(name, forward=forward, backward=backward)
    transformed = _function(name, forward=call, setup_context=remember, backward=backward)

    def operator(*args: Any) -> Tensor:
        # These can't use registered derivatives. A Function without a forward-mode derivative
        # raises an error if one is needed, where an operator would drop it.
        if is_transformed():
            return transformed(*args)
        if not plain_call(args):
            return registered(*args)  # type: ignore[no-any-return]
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            return eager(*args)
        return call(*args)

    return operator


def _wanted(ctx: Any, index: int, make: Callable[[], Tensor]) -> Tensor | None:
    return make() if ctx.needs_input_grad[index] else None


def _sum(grad: Tensor, dims: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return grad.sum(dims, dtype=torch.float32).to(dtype)


def _bias_gradient(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the gradient of a linear layer's bias."""
    # torch's sum has derivatives of higher order, but takes three times as long.
    if torch.is_grad_enabled() or not plain_call((grad,)):
        return _sum(grad.reshape(-1, grad.shape[-1]), (0,), dtype)
    return calls.sum_tokens(grad).to(dtype)


def _remember_gather(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save for backward the lists, and the layout, shape and dtype of the weight's gradient.

    Backward uses the lists of the forward pass, even if the masks move in between.
    """
    weight, lists, layout = inputs
    ctx.save_for_backward(lists)
    ctx.layout, ctx.shape, ctx.dtype = layout, weight.shape, weight.dtype
    # Autograd takes a gradient with the layout of its weight without a copy.
    ctx.channels_last = (
        weight.dim() == 4
        and weight.is_contiguous(memory_format=torch.channels_last)
        and not weight.is_contiguous()
    )


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (lists,) = ctx.saved_tensors
    dense = scatter_values(grad, lists, ctx.layout, ctx.shape, ctx.dtype, ctx.channels_last)
    return dense, None, None


def _remember_scatter(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, lists, ctx.layout, *_ = inputs
    ctx.save_for_backward(lists)


def _scatter_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (lists,) = ctx.saved_tensors
    return live_values(grad, lists, ctx.layout), None, None, None, None, None


def _remember_product(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save the inputs of a forward product: (x, values, bias, lists, layout)."""
    x, values, bias, lists, ctx.layout = inputs
    ctx.save_for_backward(x, values, lists)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _conv2d_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, lists = ctx.saved_tensors
    return (
        _wanted(ctx, 0, lambda: conv2d_input(grad, values, lists, ctx.layout, x.shape[2:])),
        _wanted(ctx, 1, lambda: conv2d_values(x, grad, lists, ctx.layout)),
        _wanted(ctx, 2, lambda: _sum(grad, (0, 2, 3), ctx.bias_dtype)),
        None,
        None,
    )


def _linear_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, lists = ctx.saved_tensors
    return (
        _wanted(ctx, 0, lambda: linear_input(grad, values, lists, ctx.layout)),
        _wanted(ctx, 1, lambda: linear_values(x, grad, lists, ctx.layout)),
        _wanted(ctx, 2, lambda: _bias_gradient(grad, ctx.bias_dtype)),
        None,
        None,
    )


def _remember_two(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save the inputs of a product in a backward pass: (tensor, tensor, lists, layout, ...)."""
    first, second, lists, ctx.layout, *_ = inputs
    ctx.save_for_backward(first, second, lists)


def _conv2d_input_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    out_grad, values, lists = ctx.saved_tensors
    return (
        _wanted(ctx, 0, lambda: conv2d(grad, values, None, lists, ctx.layout)),
        _wanted(ctx, 1, lambda: conv2d_values(grad, out_grad, lists, ctx.layout)),
        None,
        None,
        None,
    )


def _conv2d_values_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, out_grad, lists = ctx.saved_tensors
    return (
        _wanted(ctx, 0, lambda: conv2d_input(out_grad, grad, lists, ctx.layout, x.shape[2:])),
        _wanted(ctx, 1, lambda: conv2d(x, grad, None, lists, ctx.layout)),
        None,
        None,
    )


def _linear_input_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    out_grad, values, lists = ctx.saved_tensors
    return (
        _wanted(ctx, 0, lambda: linear(grad, values, None, lists, ctx.layout)),
        _wanted(ctx, 1, lambda: linear_values(grad, out_grad, lists, ctx.layout)),
        None,
        None,
    )


def _linear_values_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, out_grad, lists = ctx.saved_tensors
    return (
        _wanted(ctx, 0, lambda: linear_input(out_grad, grad, lists, ctx.layout)),
        _wanted(ctx, 1, lambda: linear(x, grad, None, lists, ctx.layout)),
        None,
        None,
    )


def _fake_values(tensor: Tensor, other: Any, *rest: Any) -> Tensor:
    lists, layout = (other, rest[0]) if len(rest) == 1 else (rest[0], rest[1])
    return tensor.new_empty(count_live(lists, layout), dtype=torch.float32)


# Without ``residual`` and ``bounds``, which are for inference and have no derivatives.
def _conv2d(
    x: Tensor, values: Tensor, bias: Tensor | None, lists: Tensor, layout: Sequence[int]
) -> Tensor:
    return calls.conv2d(x, values, bias, lists, layout)


def _linear(
    x: Tensor, values: Tensor, bias: Tensor | None, lists: Tensor, layout: Sequence[int]
) -> Tensor:
    return calls.linear(x, values, bias, lists, layout)


live_values = _operator(
    "live_values(Tensor weight, Tensor lists, int[] layout) -> Tensor",
    calls.live_values,
    _fake_values,
    _remember_gather,
    _gather_backward,
)

scatter_values = _operator(
    "scatter_values(Tensor values, Tensor lists, int[] layout, int[] shape, ScalarType dtype, "
    "bool channels_last) -> Tensor",
    calls.scatter_values,
    lambda values, lists, layout, shape, dtype, channels_last: torch.empty(
        tuple(shape),
        dtype=dtype,
        device=values.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    ),
    _remember_scatter,
    _scatter_backward,
)

conv2d = _operator(
    "conv2d(Tensor x, Tensor values, Tensor? bias, Tensor lists, int[] layout) -> Tensor",
    _conv2d,
    lambda x, values, bias, lists, layout: calls.empty_map(
        x, layout[0], calls.out_size(x.shape[2:], layout)
    ),
    _remember_product,
    _conv2d_backward,
)

conv2d_input = _operator(
    "conv2d_input(Tensor grad, Tensor values, Tensor lists, int[] layout, SymInt[] size) -> Tensor",
    calls.conv2d_input,
    lambda grad, values, lists, layout, size: calls.empty_map(grad, layout[1], size),
    _remember_two,
    _conv2d_input_backward,
)

conv2d_values = _operator(
    "conv2d_values(Tensor x, Tensor grad, Tensor lists, int[] layout) -> Tensor",
    calls.conv2d_values,
    _fake_values,
    _remember_two,
    _conv2d_values_backward,
)

linear = _operator(
    "linear(Tensor x, Tensor values, Tensor? bias, Tensor lists, int[] layout) -> Tensor",
    _linear,
    lambda x, values, bias, lists, layout: x.new_empty((*x.shape[:-1], layout[0])),
    _remember_product,
    _linear_backward,
)

linear_input = _operator(
    "linear_input(Tensor grad, Tensor values, Tensor lists, int[] layout) -> Tensor",
    calls.linear_input,
    lambda grad, values, lists, layout: grad.new_empty((*grad.shape[:-1], layout[1])),
    _remember_two,
    _linear_input_backward,
)

linear_values = _operator(
    "linear_values(Tensor x, Tensor grad, Tensor lists, int[] layout) -> Tensor",
    calls.linear_values,
    _fake_values,
    _remember_two,
    _linear_values_backward,
)
