"""What the kernels are compared with: dense products in float64, and their gradients."""

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F

from sparseopt.speedup import kernels
from sparseopt.speedup.kernels import build

needs_kernels = pytest.mark.skipif(
    not kernels.available(), reason=f"no kernels here: {kernels.why_not()}"
)
needs_compiler = pytest.mark.skipif(
    build.find_compiler() is None, reason="there is no C++ compiler"
)

RELATIVE = 5e-7  # the error of float32 sums: its norm over the norm of the sums
HALF_ULP = 2**-8  # of a bfloat16


class Products(NamedTuple):
    """An output, and the gradients of input, weight and bias."""

    y: torch.Tensor
    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor


def lists_of(mask, **settings):
    lists = kernels.LiveLists(mask.shape, **settings)
    lists.update(mask.flatten().nonzero()[:, 0], version=1)
    return lists


def rounded(shape, dtype):
    """Normally distributed numbers, rounded to the dtype."""
    return torch.randn(shape).to(dtype)


def products(function, x, weight, bias, grad):
    """Run a function of (x, weight, bias) forwards and backwards."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    y = function(*leaves)
    y.backward(grad.to(y.dtype))
    return Products(y.detach(), *(leaf.grad for leaf in leaves))


def dense_conv2d(stride, padding, dilation):
    return lambda x, weight, bias: F.conv2d(x, weight, bias, stride, padding, dilation)


def check(function, dense, x, weight, bias, grad, mask):
    """Compare all three products of the kernels with dense ones in float64."""
    actual = products(function, x, weight, bias, grad)
    inputs = [t.double() for t in (x, weight, bias, grad)]
    inputs[1] = inputs[1] * mask
    exact = products(dense, *inputs)
    size = products(dense, *(t.abs() for t in inputs))
    for name in ("y", "x", "bias"):
        _close(getattr(actual, name), getattr(exact, name), getattr(size, name), name)
    assert actual.weight[~mask].eq(0).all()
    _close(actual.weight[mask], exact.weight[mask], size.weight[mask], "weight")


def _close(actual, exact, size, name):
    """`size` is the same product of absolute values, an upper bound of the sum.

    If there are few sums, all of them may cancel. Then the error is large compared with the sums,
    so it is compared with `size`. Many sums do not all cancel.
    """
    error = (actual.double() - exact).abs()
    scale = size.norm() if exact.numel() < 100 else exact.norm()
    if actual.dtype is torch.float32:
        assert error.norm() <= RELATIVE * scale, f"{name}: {error.norm() / scale:.1e}"
    else:
        excess = error - HALF_ULP * 1.01 * exact.abs() - 1e-6 * size
        assert excess.max() <= 0, f"{name}: {excess.max():.1e} more than the rounding"
