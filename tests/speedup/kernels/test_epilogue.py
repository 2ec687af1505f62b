"""What follows a product in inference, in the same pass: residual, ReLU, ReLU6, normalisation."""

import pytest
import torch
import torch.nn.functional as F

from sparseopt.speedup.kernels import LiveLists, available, calls, inference_ops, why_not

pytestmark = pytest.mark.skipif(not available(), reason=str(why_not()))
INFINITY = float("inf")
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
BOUNDS = [None, (0.0, INFINITY), (0.0, 6.0)]


def layer(shape, **geometry):
    torch.manual_seed(0)
    weight = torch.randn(shape)
    mask = torch.rand(shape) < 0.2
    lists = LiveLists(shape, **geometry)
    lists.update(mask.flatten().nonzero()[:, 0], 1)
    return weight * mask, mask, lists


def assert_close(found, expected, dtype):
    assert found.dtype == dtype
    apart = (found.double() - expected).abs().max() / expected.abs().max()
    assert apart <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("batch", [1, 2, 15, 16, 20, 32, 64])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (1, 1, 0), (1, 2, 0)]
)
@pytest.mark.parametrize("bounds", BOUNDS)
def test_convolution_adds_a_residual_and_clamps(dtype, batch, kernel, stride, padding, bounds):
    weight, mask, lists = layer((24, 16, kernel, kernel), stride=stride, padding=padding)
    weight, bias = weight.to(dtype), torch.randn(24)
    x = torch.randn(batch, 16, 14, 9).to(dtype)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), stride, padding)
    residual = torch.randn(expected.shape).to(dtype)
    expected = expected + residual.double()
    if bounds is not None:
        expected = expected.clamp(*bounds)
    found = inference_ops.conv2d(
        x, weight[mask], bias, lists.tensor, lists.layout, residual, bounds
    )
    assert_close(found, expected, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("tokens", [1, 3, 33, 200])
def test_linear_layer_clamps(dtype, tokens):
    weight, mask, lists = layer((40, 56))
    weight, bias = weight.to(dtype), torch.randn(40)
    x = torch.randn(tokens, 56).to(dtype)
    expected = F.linear(x.double(), weight.double(), bias.double()).relu()
    found = inference_ops.linear(x, weight[mask], bias, lists.tensor, lists.layout, (0.0, INFINITY))
    assert_close(found, expected, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("batch", [1, 3, 32])
@pytest.mark.parametrize("bounds", BOUNDS)
def test_normalisation_scales_shifts_and_clamps(dtype, batch, bounds):
    x = torch.randn(batch, 16, 7, 5).to(dtype)
    factor, shift = torch.randn(2, 16).unbind()
    by_channel = (-1, 1, 1)
    expected = x.double() * factor.double().view(by_channel) + shift.double().view(by_channel)
    if bounds is not None:
        expected = expected.clamp(*bounds)
    assert_close(inference_ops.affine(x, factor, shift, bounds), expected, dtype)


def test_nan_stays_nan_through_a_clamp():
    x = torch.full((1, 1, 2, 2), float("nan"))
    ones = torch.ones(1)
    assert inference_ops.affine(x, ones, ones, (0.0, 6.0)).isnan().all()


def test_residual_of_another_shape_is_refused():
    weight, mask, lists = layer((4, 4, 1, 1))
    x = torch.randn(2, 4, 5, 5)
    with pytest.raises(ValueError, match=r"residual must have the shape \(2, 4, 5, 5\)"):
        calls.conv2d(x, weight[mask], None, lists.tensor, lists.layout, x[:1], None)


@pytest.mark.parametrize("batch", [1, 8])
def test_operators_fit_what_torch_expects_of_them(batch):
    weight, mask, lists = layer((4, 4, 3, 3), padding=1)
    x = calls.kernel_layout(torch.randn(batch, 4, 6, 6))
    residual = calls.kernel_layout(torch.randn(batch, 4, 6, 6))
    tests = ("test_schema", "test_faketensor")
    given = (x, weight[mask], None, lists.tensor, lists.layout, residual, [0.0, 6.0])
    torch.library.opcheck(torch.ops.sparseopt.conv2d_epilogue.default, given, test_utils=tests)
    given = (x, torch.ones(4), torch.ones(4), None)
    torch.library.opcheck(torch.ops.sparseopt.affine.default, given, test_utils=tests)
