"""Calls the kernels on tensors, without autograd: Python checks shapes, then C++ computes.

In all functions, ``lists`` and ``layout`` are the ``tensor`` and the ``layout`` of a
:class:`~sparseopt.speedup.kernels.formats.LiveLists`. ``values`` are the live weights in row-major
order: 1-D, float32, rounded to bfloat16 where the input is bfloat16. Sums are always float32.
"""

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from sparseopt.speedup.kernels.formats import count_live, layer_struct
from sparseopt.speedup.kernels.library import library, raise_if, threads

__all__ = [
    "affine",
    "channels_last_layout",
    "conv2d",
    "conv2d_input",
    "conv2d_values",
    "converted",
    "empty_map",
    "kernel_layout",
    "kernel_layout_of_channels_last",
    "linear",
    "linear_input",
    "linear_values",
    "live_values",
    "live_values_if_masked",
    "out_size",
    "scatter_values",
    "standard_layout",
    "sum_tokens",
]

DTYPES = (torch.float32, torch.bfloat16)
_TRANSPOSED_FROM = 32  # samples from which a layout is changed by a transposed matrix
_MOVED = 8  # multiply-adds in the time of reading one element from memory and writing it back
_ACCESS = 16  # multiply-adds in the time of one scattered access to memory
_READ_WEIGHT = 16  # multiply-adds in the time of reading a live weight and its code from memory


def kernel_layout(x: Tensor) -> Tensor:
    """Return a tensor in the kernels' layout: logical (N, C, H, W) with strides (1, HWN, WN, N).

    A tensor that has this layout already is returned unchanged.
    """
    by_channel = x.permute(1, 2, 3, 0)
    if by_channel.is_contiguous():
        return x
    if not _is_transposed(x.shape[0]):
        return by_channel.contiguous().permute(3, 0, 1, 2)
    # torch transposes a matrix of many rows several times as fast as it permutes four dimensions.
    transposed = x.reshape(x.shape[0], -1).t().contiguous()
    return transposed.view(by_channel.shape).permute(3, 0, 1, 2)


def standard_layout(x: Tensor) -> Tensor:
    """Return a tensor in the kernels' layout as a contiguous tensor, (N, C, H, W)."""
    if not _is_transposed(x.shape[0]):
        return x.contiguous()
    return x.permute(1, 2, 3, 0).reshape(-1, x.shape[0]).t().contiguous().view(x.shape)


def _is_transposed(samples: int) -> bool:
    """Whether a layout is changed by a transposed matrix, which is faster for many samples.

    A program for any number of samples permutes the dimensions: a comparison would fix on which
    side of the limit its batches are.
    """
    if torch.compiler.is_compiling():
        # This imports sympy, which takes long and is loaded when a compiler runs.
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return statically_known_true(samples >= _TRANSPOSED_FROM)
    return samples >= _TRANSPOSED_FROM


def kernel_layout_of_channels_last(x: Tensor) -> Tensor:
    """Return a copy of a channels-last map in the kernels' layout; it is not a view."""
    result = empty_map(x, x.shape[1], x.shape[2:])
    _change_layout(x, result, into=True)
    return result


def channels_last_layout(x: Tensor) -> Tensor:
    """Return a copy of a map in the kernels' layout in channels-last format."""
    result = torch.empty_like(x, memory_format=torch.channels_last)
    _change_layout(x, result, into=False)
    return result


def _change_layout(x: Tensor, result: Tensor, *, into: bool) -> None:
    """Copy a map into the kernels' layout (``into``), or from it to channels-last format."""
    batch, channels, height, width = x.shape
    failed = library().sparseopt_change_layout(
        x.data_ptr(),
        result.data_ptr(),
        batch,
        channels,
        height * width,
        into,
        x.dtype is torch.bfloat16,
        threads(x.numel() * _MOVED),
    )
    raise_if(failed)


def empty_map(like: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    """Return an uninitialised tensor in the kernels' layout, with the batch and dtype of ``like``.

    It is not a view, so that operations in place may follow.
    """
    batch, (height, width) = like.shape[0], size
    strides = (1, height * width * batch, width * batch, batch)
    return like.new_empty_strided((batch, channels, height, width), strides)


def out_size(size: Sequence[int], layout: Sequence[int]) -> tuple[int, int]:
    """Return height and width of a convolution's output."""
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w = layout[2:10]
    return (
        (size[0] + 2 * pad_h - (kernel_h - 1) * dilation_h - 1) // stride_h + 1,
        (size[1] + 2 * pad_w - (kernel_w - 1) * dilation_w - 1) // stride_w + 1,
    )


def live_values(weight: Tensor, lists: Tensor, layout: Sequence[int]) -> Tensor:
    """Return the live weights of a dense weight of any strides: float32, in row-major order."""
    live = _check_weight(weight, lists, layout)
    values = weight.new_empty(live, dtype=torch.float32)
    failed = library().sparseopt_gather(
        *_lists(lists, layout),
        weight.data_ptr(),
        _strides(weight),
        weight.dtype is torch.bfloat16,
        values.data_ptr(),
        threads(live * _ACCESS),
    )
    raise_if(failed)
    return values


def live_values_if_masked(
    weight: Tensor, lists: Tensor, layout: Sequence[int]
) -> tuple[Tensor, bool]:
    """Return the live weights, and whether all other weights are zero, by their bits."""
    live = _check_weight(weight, lists, layout)
    if not _is_dense(weight):
        weight = weight.contiguous()
    values = weight.new_empty(live, dtype=torch.float32)
    others = ctypes.c_int64()
    failed = library().sparseopt_gather_and_count(
        *_lists(lists, layout),
        weight.data_ptr(),
        _strides(weight),
        weight.dtype is torch.bfloat16,
        values.data_ptr(),
        ctypes.addressof(others),
        threads(live * _ACCESS + weight.numel()),
    )
    raise_if(failed)
    return values, others.value == 0


def _check_weight(weight: Tensor, lists: Tensor, layout: Sequence[int]) -> int:
    """Check that a weight fits the lists, and return its number of live weights."""
    _check(weight, "weight")
    out, channels, height, width = layout[:4]
    shape = (out, channels, height, width) if weight.dim() == 4 else (out, channels)
    if tuple(weight.shape) != shape:
        raise ValueError(f"weight must have the shape {shape}, not {tuple(weight.shape)}")
    return count_live(lists, layout)


def _is_dense(weight: Tensor) -> bool:
    """Whether the weights of each output are contiguous in memory."""
    return weight.is_contiguous() or (
        weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    )


def scatter_values(
    values: Tensor,
    lists: Tensor,
    layout: Sequence[int],
    shape: Sequence[int],
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """Return a dense tensor with the values at the live positions and zeros elsewhere."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    dense = torch.empty(
        tuple(shape), dtype=dtype, device=values.device, memory_format=memory_format
    )
    values = values.float().contiguous()
    failed = library().sparseopt_scatter(
        *_lists(lists, layout),
        values.data_ptr(),
        _strides(dense),
        dtype is torch.bfloat16,
        dense.data_ptr(),
        threads(values.shape[0] * _ACCESS),
    )
    raise_if(failed)
    return dense


def conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    lists: Tensor,
    layout: Sequence[int],
    residual: Tensor | None = None,
    bounds: Sequence[float] | None = None,
) -> Tensor:
    """Return the convolution of ``x`` (N, C, H, W), in the kernels' layout.

    ``residual``, of the shape of the result, is added. Then the sums are clamped to ``bounds``, two
    numbers, and only then rounded.
    """
    _check_map(x, "x", layout[1])
    size = out_size(x.shape[2:], layout)
    if min(size) < 1:
        raise ValueError(
            f"x must be at least as large as the kernel with its dilation, not {tuple(x.shape[2:])}"
        )
    x = kernel_layout(x)
    y = empty_map(x, layout[0], size)
    live = count_live(lists, layout)
    values, bias = _values(values, x, live), _bias(bias, layout[0])
    if residual is not None:
        residual = _residual(residual, y)
    pixels = y.numel() // layout[0]
    if pixels:
        tensors = (x, values, bias, residual, _bounds(bounds), y)
        _run("output", lists, live, layout, _sizes(x.shape, size), tensors, pixels)
    return y


def conv2d_input(
    grad: Tensor, values: Tensor, lists: Tensor, layout: Sequence[int], size: Sequence[int]
) -> Tensor:
    """Return the gradient of a convolution's input, whose maps have (height, width) ``size``."""
    _check_map(grad, "grad", layout[0])
    grad = kernel_layout(grad)
    result = empty_map(grad, layout[1], size)
    live = count_live(lists, layout)
    values = _values(values, grad, live)
    if result.numel():
        sizes = _sizes((*grad.shape[:2], *size), grad.shape[2:])
        pixels = grad.numel() // layout[0]
        _run("input", lists, live, layout, sizes, (grad, values, result), pixels)
    return result


def conv2d_values(x: Tensor, grad: Tensor, lists: Tensor, layout: Sequence[int]) -> Tensor:
    """Return the gradients of a convolution's live weights: float32, in row-major order."""
    _check_map(x, "x", layout[1])
    _check_map(grad, "grad", layout[0])
    x, grad = kernel_layout(x), kernel_layout(grad.to(x.dtype))
    live = count_live(lists, layout)
    result = x.new_zeros(live, dtype=torch.float32)
    if grad.numel():
        sizes = _sizes(x.shape, grad.shape[2:])
        pixels = grad.numel() // layout[0]
        _run("values", lists, live, layout, sizes, (x, grad, result), pixels)
    return result


def linear(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    lists: Tensor,
    layout: Sequence[int],
    bounds: Sequence[float] | None = None,
) -> Tensor:
    """Return ``x @ weight.T + bias`` for ``x`` (..., in), clamped to ``bounds``, two numbers."""
    _check_last(x, "x", layout[1])
    x, bias = x.contiguous(), _bias(bias, layout[0])
    y = x.new_empty((*x.shape[:-1], layout[0]))
    live = count_live(lists, layout)
    values = _values(values, x, live)
    tokens = x.numel() // layout[1]
    if tokens:
        tensors = (x, values, bias, None, _bounds(bounds), y)
        # For a few tokens, reading the weight and its code takes longer than multiplying by it.
        work = max(tokens, _READ_WEIGHT)
        _run("output", lists, live, layout, _sizes_of_linear(tokens), tensors, work)
    return y


def linear_input(grad: Tensor, values: Tensor, lists: Tensor, layout: Sequence[int]) -> Tensor:
    """Return the gradient of a linear layer's input, from ``grad`` (..., out)."""
    _check_last(grad, "grad", layout[0])
    grad = grad.contiguous()
    result = grad.new_empty((*grad.shape[:-1], layout[1]))
    live = count_live(lists, layout)
    values = _values(values, grad, live)
    if result.numel():
        tokens = grad.numel() // layout[0]
        _run("input", lists, live, layout, _sizes_of_linear(tokens), (grad, values, result), tokens)
    return result


def linear_values(x: Tensor, grad: Tensor, lists: Tensor, layout: Sequence[int]) -> Tensor:
    """Return the gradients of a linear layer's live weights: float32, in row-major order."""
    _check_last(x, "x", layout[1])
    _check_last(grad, "grad", layout[0])
    x, grad = x.contiguous(), grad.to(x.dtype).contiguous()
    live = count_live(lists, layout)
    result = x.new_zeros(live, dtype=torch.float32)
    if x.numel():
        tokens = x.numel() // layout[1]
        _run("values", lists, live, layout, _sizes_of_linear(tokens), (x, grad, result), tokens)
    return result


def affine(
    x: Tensor, factor: Tensor, shift: Tensor, bounds: Sequence[float] | None = None
) -> Tensor:
    """Return ``x * factor + shift`` by channel, clamped to ``bounds``, in the kernels' layout.

    ``factor`` and ``shift`` are (C,) and float32.
    """
    _check_map(x, "x", factor.shape[0])
    x = kernel_layout(x)
    y = empty_map(x, x.shape[1], x.shape[2:])
    channels = x.shape[1]
    factor, shift = factor.float().contiguous(), shift.float().contiguous()
    failed = library().sparseopt_affine(
        x.data_ptr(),
        factor.data_ptr(),
        shift.data_ptr(),
        _bounds(bounds),
        y.data_ptr(),
        channels,
        x.numel() // max(1, channels),
        x.dtype is torch.bfloat16,
        threads(x.numel() * _MOVED),
    )
    raise_if(failed)
    return y


def sum_tokens(grad: Tensor) -> Tensor:
    """Return the sums of ``grad`` (..., out) over all but its last dimension: float32, (out,)."""
    _check(grad, "grad")
    grad = grad.contiguous()
    out = grad.shape[-1]
    sums = grad.new_empty(out, dtype=torch.float32)
    failed = library().sparseopt_sum_tokens(
        grad.data_ptr(),
        grad.numel() // max(1, out),
        out,
        sums.data_ptr(),
        grad.dtype is torch.bfloat16,
        threads(grad.numel()),
    )
    raise_if(failed)
    return sums


def _run(
    name: str,
    lists: Tensor,
    live: int,
    layout: Sequence[int],
    sizes: ctypes.Array[ctypes.c_int64],
    tensors: Sequence[Tensor | ctypes.Array[ctypes.c_float] | None],
    columns: int,
) -> None:
    """Call a function of the library.

    Args:
        name: The function's name, without the prefix.
        lists: The lists of live weights.
        live: The number of live weights.
        layout: The layout of the lists.
        sizes: The sizes of the tensors.
        tensors: The tensors that it reads and, last, the tensor that it writes; the first one
            decides the number format.
        columns: The work for each live weight, in multiply-adds, which decides how many threads
            are worth it.
    """
    first = tensors[0]
    failed = getattr(library(), f"sparseopt_{name}")(
        lists.data_ptr(),
        live,
        layer_struct(layout),
        sizes,
        *[given.data_ptr() if isinstance(given, Tensor) else given for given in tensors],
        isinstance(first, Tensor) and first.dtype is torch.bfloat16,
        threads(live * columns),
    )
    raise_if(failed)


def converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``tensor.to(dtype)``, without its microsecond where there is nothing to convert."""
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def _check(tensor: Tensor, name: str) -> None:
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32 or bfloat16, not {tensor.dtype}")
    if not tensor.is_cpu:
        raise ValueError(f"{name} must be on the CPU, not on {tensor.device}")


def _check_map(x: Tensor, name: str, channels: int) -> None:
    _check(x, name)
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"{name} must have the shape (N, {channels}, H, W), not {tuple(x.shape)}")


def _check_last(x: Tensor, name: str, features: int) -> None:
    _check(x, name)
    if x.dim() < 1 or x.shape[-1] != features:
        raise ValueError(f"{name} must have the shape (..., {features}), not {tuple(x.shape)}")


def _values(values: Tensor, x: Tensor, live: int) -> Tensor:
    """Return the values in the number format of the input, as the inner loops read them."""
    if values.dim() != 1 or values.shape[0] != live:
        raise ValueError(f"values must have the shape ({live},), not {tuple(values.shape)}")
    return converted(values, x.dtype).contiguous()


def _bias(bias: Tensor | None, out: int) -> Tensor | None:
    if bias is None:
        return None
    if bias.dim() != 1 or bias.shape[0] != out:
        raise ValueError(f"bias must have the shape ({out},), not {tuple(bias.shape)}")
    return converted(bias, torch.float32).contiguous()


def _residual(residual: Tensor, y: Tensor) -> Tensor:
    if residual.shape != y.shape:
        raise ValueError(
            f"residual must have the shape {tuple(y.shape)}, not {tuple(residual.shape)}"
        )
    return kernel_layout(residual.to(y.dtype))


@functools.lru_cache(maxsize=256)
def _limits(low: float, high: float) -> ctypes.Array[ctypes.c_float]:
    return (ctypes.c_float * 2)(low, high)


def _bounds(bounds: Sequence[float] | None) -> ctypes.Array[ctypes.c_float] | None:
    return None if bounds is None else _limits(*bounds)


def _lists(lists: Tensor, layout: Sequence[int]) -> tuple[int, int, ctypes.Array[ctypes.c_int]]:
    return lists.data_ptr(), count_live(lists, layout), layer_struct(layout)


def _sizes(x: Sequence[int], out: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    """Return the ``Sizes`` of grid.h for an input (N, C, H, W) and an output (H', W')."""
    return _six(x[0], x[2], x[3], *out, False)


def _sizes_of_linear(tokens: int) -> ctypes.Array[ctypes.c_int64]:
    return _six(tokens, 1, 1, 1, 1, True)


@functools.lru_cache(maxsize=4096)
def _six(*sizes: int) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * 6)(*sizes)


def _strides(weight: Tensor) -> ctypes.Array[ctypes.c_int64]:
    strides = weight.stride()
    return (ctypes.c_int64 * 4)(*strides, *(0,) * (4 - len(strides)))
