"""Convolutions on live weights against dense ones in float64, over shapes of every kind."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseopt.speedup import kernels
from sparseopt.speedup.kernels import calls
from tests.speedup.kernels.dense import check, dense_conv2d, lists_of, needs_kernels, rounded

pytestmark = needs_kernels

LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "kernels": calls.kernel_layout,
    "every other": lambda x: torch.stack((x, x), -1)[..., 0],
}
DTYPES = [torch.float32, torch.bfloat16]


def compare(batch, channels, size, out, kernel, stride, padding, dilation, mask, dtype, layout):
    x = LAYOUTS[layout](rounded((batch, channels, *size), dtype))
    weight = rounded((out, channels, *kernel), dtype).float()
    lists = lists_of(mask, stride=stride, padding=padding, dilation=dilation)
    dense = dense_conv2d(stride, padding, dilation)
    grad = LAYOUTS[layout](rounded(dense(x.float(), weight, None).shape, dtype))
    check(
        lambda x, w, b: kernels.conv2d(x, w, b, lists),
        dense,
        x,
        weight,
        torch.randn(out),
        grad,
        mask,
    )


@st.composite
def convolutions(draw):
    pair = lambda values: (draw(values), draw(values))  # noqa: E731
    kernel, dilation = pair(st.integers(1, 5)), pair(st.integers(1, 3))
    stride, padding = pair(st.integers(1, 3)), pair(st.integers(0, 4))
    size = tuple(
        max(draw(st.integers(1, 21)), (k - 1) * d + 1 - 2 * p)
        for k, d, p in zip(kernel, dilation, padding, strict=True)
    )
    out, channels = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    live = draw(st.floats(0, 1))
    mask = torch.rand(out, channels, *kernel) < live
    mask.view(-1)[draw(st.integers(0, mask.numel() - 1))] = True  # one live weight at least
    batch = draw(st.sampled_from([1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 48]))
    dtype, layout = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(list(LAYOUTS)))
    return batch, channels, size, out, kernel, stride, padding, dilation, mask, dtype, layout


@settings(max_examples=80)
@given(convolutions())
def test_products_are_those_of_a_dense_convolution(convolution):
    compare(*convolution)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 32])
def test_single_live_weight_is_multiplied(dtype, batch):
    mask = torch.zeros(6, 5, 3, 3, dtype=torch.bool)
    mask[4, 2, 0, 2] = True
    compare(batch, 5, (9, 7), 6, (3, 3), (1, 1), (1, 1), (1, 1), mask, dtype, "contiguous")


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_channels_make_many_bands(dtype):
    mask = torch.rand(40, 512, 3, 3) < 0.1
    mask[::3] = False  # rows with none
    compare(33, 512, (9, 9), 40, (3, 3), (1, 1), (1, 1), (1, 1), mask, dtype, "kernels")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out", "channels"), [(20, 600), (600, 20), (300, 600)])
@pytest.mark.parametrize("batch", [3, 32])
def test_many_channels_of_single_pixels(batch, out, channels, dtype):
    mask = torch.rand(out, channels, 1, 1) < 0.1
    mask[::3] = False  # rows with none
    compare(batch, channels, (9, 8), out, (1, 1), (1, 1), (0, 0), (1, 1), mask, dtype, "kernels")


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_of_many_megabytes(dtype):
    mask = torch.rand(80, 4, 1, 1) < 0.5
    compare(32, 4, (32, 32), 80, (1, 1), (1, 1), (0, 0), (1, 1), mask, dtype, "kernels")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 2, 3, 15, 16, 20, 32, 37, 64])
def test_matrix_of_shapes(batch, dtype):
    sizes = [(7, 7), (14, 9), (5, 40), (32, 32)]
    kernel_padding = [((k, k), (p, p)) for k, p in ((1, 0), (3, 1), (5, 2), (7, 3), (3, 0))]
    kernel_padding.append(((1, 3), (0, 1)))
    for size, (kernel, padding), stride, dilation in itertools.product(
        sizes, kernel_padding, (1, 2), (1, 2)
    ):
        reach = [(k - 1) * dilation + 1 - 2 * p for k, p in zip(kernel, padding, strict=True)]
        if reach[0] > size[0] or reach[1] > size[1] or (batch > 20 and size == (32, 32)):
            continue
        mask = torch.rand(7, 5, *kernel) < 0.3
        mask[0, 0, 0, 0] = True
        compare(
            *(batch, 5, size, 7, kernel, (stride, stride), padding, (dilation, dilation)),
            *(mask, dtype, "kernels"),
        )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_maps(dtype):
    mask = torch.rand(8, 3, 7, 7) < 0.2
    compare(1, 3, (224, 224), 8, (7, 7), (2, 2), (3, 3), (1, 1), mask, dtype, "contiguous")
    compare(17, 3, (112, 130), 8, (7, 7), (1, 1), (3, 3), (1, 1), mask, dtype, "contiguous")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_output_is_in_the_layout_of_the_kernels(layout):
    x = LAYOUTS[layout](torch.randn(4, 3, 5, 6))
    y = kernels.conv2d(x, torch.randn(2, 3, 1, 1), None, lists_of(torch.ones(2, 3, 1, 1) > 0))
    assert y.stride() == (1, 5 * 6 * 4, 6 * 4, 4)
    assert calls.kernel_layout(y) is y
    assert not y._is_view()


def test_weight_may_have_any_strides_and_its_gradient_has_them():
    mask = torch.rand(6, 5, 3, 3) < 0.4
    lists = lists_of(mask, padding=1)
    x, weight = torch.randn(3, 5, 8, 8), torch.randn(6, 5, 3, 3)
    expected = F.conv2d(x, weight * mask, None, 1, 1)
    last = weight.to(memory_format=torch.channels_last).requires_grad_()
    y = kernels.conv2d(x, last, None, lists)
    y.sum().backward()
    torch.testing.assert_close(y, expected)
    assert last.grad.stride() == last.stride()
    transposed = weight.transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(kernels.conv2d(x, transposed, None, lists), expected)


def test_weight_gradient_alone():
    mask = torch.rand(4, 3, 3, 3) < 0.5
    x, weight = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3, requires_grad=True)
    kernels.conv2d(x, weight, None, lists_of(mask)).sum().backward()
    expected = torch.nn.grad.conv2d_weight(x, weight.shape, torch.ones(2, 4, 4, 4)) * mask
    torch.testing.assert_close(weight.grad, expected)


def test_input_gradient_alone():
    mask = torch.rand(4, 3, 3, 3) < 0.5
    x, weight = torch.randn(2, 3, 6, 6, requires_grad=True), torch.randn(4, 3, 3, 3)
    kernels.conv2d(x, weight, None, lists_of(mask)).sum().backward()
    expected = torch.nn.grad.conv2d_input(x.shape, weight * mask, torch.ones(2, 4, 4, 4))
    torch.testing.assert_close(x.grad, expected)


def test_empty_batch():
    weight = torch.randn(4, 3, 3, 3, requires_grad=True)
    x = torch.randn(0, 3, 6, 6, requires_grad=True)
    y = kernels.conv2d(x, weight, torch.zeros(4), lists_of(torch.rand(4, 3, 3, 3) < 0.5))
    y.sum().backward()
    assert y.shape == (0, 4, 4, 4)
    assert x.grad.shape == x.shape
    assert weight.grad.eq(0).all()


def test_output_without_live_weights_is_the_bias():
    lists = lists_of(torch.zeros(4, 3, 3, 3, dtype=torch.bool))
    y = kernels.conv2d(torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3), torch.arange(4.0), lists)
    assert y.eq(torch.arange(4.0).view(1, 4, 1, 1)).all()


def test_operations_in_place_may_follow():
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    weight = torch.randn(4, 3, 1, 1)
    y = kernels.conv2d(x, weight, None, lists_of(torch.ones(4, 3, 1, 1) > 0))
    y.relu_().sum().backward()
    found, x.grad = x.grad, None
    F.conv2d(x, weight).relu_().sum().backward()
    torch.testing.assert_close(found, x.grad)


def test_autocast_computes_in_bfloat16_and_keeps_float32_gradients():
    mask = torch.rand(4, 3, 3, 3) < 0.5
    x, weight = torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3, requires_grad=True)
    lists = lists_of(mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = kernels.conv2d(x, weight, None, lists)
        expected = F.conv2d(x, weight * mask)
    y.float().sum().backward()
    assert y.dtype is torch.bfloat16
    assert weight.grad.dtype is torch.float32
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("x", "weight", "bias", "error", "words"),
    [
        (torch.ones(2, 5, 6, 6), torch.ones(4, 3, 3, 3), None, ValueError, "N, 3, H, W"),
        (torch.ones(3, 6, 6), torch.ones(4, 3, 3, 3), None, ValueError, "N, C, H, W"),
        (torch.ones(2, 3, 2, 6), torch.ones(4, 3, 3, 3), None, ValueError, "as large as"),
        (torch.ones(2, 3, 6, 6), torch.ones(4, 3, 3, 2), None, ValueError, "weight must"),
        (torch.ones(2, 3, 6, 6), torch.ones(4, 3, 3, 3), torch.ones(3), ValueError, "bias must"),
        (torch.ones(2, 3, 6, 6).half(), torch.ones(4, 3, 3, 3), None, TypeError, "float16"),
        (torch.ones(2, 3, 6, 6).double(), torch.ones(4, 3, 3, 3), None, TypeError, "float64"),
    ],
)
def test_tensor_that_does_not_fit_is_named(x, weight, bias, error, words):
    with pytest.raises(error, match=words):
        kernels.conv2d(x, weight, bias, lists_of(torch.ones(4, 3, 3, 3) > 0))


def test_autocast_to_float16_is_named():
    lists = lists_of(torch.ones(4, 3, 3, 3) > 0)
    with torch.autocast("cpu", dtype=torch.float16), pytest.raises(TypeError, match="float16"):
        kernels.conv2d(torch.ones(2, 3, 6, 6), torch.ones(4, 3, 3, 3), None, lists)
