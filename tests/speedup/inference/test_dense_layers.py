"""Dense layers for inference: broadcast residuals, derivatives, weights written after a call."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import forward_ad

from sparseopt.speedup.inference import dense_layers
from sparseopt.speedup.inference.dense_layers import DenseConv2d, DenseLinear
from sparseopt.speedup.inference.live_layers import Origin


def convolution(bounds=None):
    module = nn.Conv2d(4, 8, 3, padding=1)
    layer = DenseConv2d(module, torch.float32, Origin("weight", "bias"), bounds)
    layer.set_weights(module.weight, module.bias)
    return module, layer.eval()


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("bounds", [None, (0.0, float("inf"))])
@torch.no_grad()
def test_residual_of_one_sample_is_added_to_all_samples(batch, bounds):
    module, layer = convolution(bounds)
    x, residual = torch.randn(batch, 4, 6, 6), torch.randn(1, 8, 6, 6)
    expected = module(x) + residual
    expected = expected if bounds is None else expected.clamp(*bounds)
    torch.testing.assert_close(layer(x, residual), expected)


@torch.no_grad()
def test_convolution_weights_that_are_written_after_a_call_are_used():
    _, layer = convolution()
    x = torch.randn(2, 4, 6, 6)
    layer(x)
    other, other_layer = convolution()
    layer.load_state_dict(other_layer.state_dict())
    torch.testing.assert_close(layer(x), other(x))
    layer.weight.mul_(2)
    torch.testing.assert_close(layer(x), F.conv2d(x, 2 * other.weight, other.bias, padding=1))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
@torch.no_grad()
def test_forward_mode_derivatives_are_those_of_torchs_layers():
    module, layer = convolution()
    x, tangent = torch.randn(2, 4, 6, 6), torch.randn(2, 4, 6, 6)
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(layer(forward_ad.make_dual(x, tangent)))
    torch.testing.assert_close(found.tangent, F.conv2d(tangent, module.weight, padding=1))


@torch.no_grad()
def test_linear_weights_that_are_written_after_a_call_are_used():
    module = nn.Linear(16, 8)
    layer = DenseLinear(torch.float32, Origin("weight", "bias"))
    layer.set_weights(module.weight, module.bias)
    x = torch.randn(4, 16)
    torch.testing.assert_close(layer(x), module(x))
    layer.weight.zero_()
    torch.testing.assert_close(layer(x), module.bias.expand(4, 8))


@pytest.mark.parametrize("fastest", ["oneDNN", "columns"])
@pytest.mark.parametrize("bounds", [None, (0.0, float("inf")), (0.0, 0.5)])
@torch.no_grad()
def test_one_token_is_computed_as_by_torch_by_the_way_that_took_less_time(
    monkeypatch, fastest, bounds
):
    def timed(ways, device):
        return {name: float(name != fastest) for name in ways}

    monkeypatch.setattr(dense_layers, "time_briefly", timed)
    module = nn.Linear(16, 8)
    layer = DenseLinear(torch.float32, Origin("weight", "bias"), bounds)
    layer.set_weights(module.weight, module.bias)

    def agree():
        for shape in ((1, 16), (16,), (1, 1, 16), (5, 16), (2, 3, 16)):
            x = torch.randn(shape)
            y = F.linear(x, layer.weight, layer.bias)
            torch.testing.assert_close(layer(x), y if bounds is None else y.clamp(*bounds))

    agree()
    layer.weight.mul_(2)
    agree()


@torch.no_grad()
def test_one_token_without_bias_in_each_number_format():
    for dtype in (torch.float32, torch.bfloat16):
        module = nn.Linear(16, 8, bias=False, dtype=dtype)
        layer = DenseLinear(dtype, Origin("weight", None))
        layer.set_weights(module.weight, None)
        x = torch.randn(1, 16, dtype=dtype)
        torch.testing.assert_close(layer(x), module(x))
