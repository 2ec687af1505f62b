"""Linear layers that multiply live weights only compute the same as dense layers."""

import pytest
import torch
from torch import nn

from sparseopt import CondensedLinear, CSRLinear


def constant_fan_in(rows, columns, fan_in, ablated=()):
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    for row in range(rows):
        if row not in ablated:
            mask[row, torch.randperm(columns)[:fan_in]] = True
    return mask


def masked_linear(mask, bias=True):
    layer = nn.Linear(*reversed(mask.shape), bias=bias)
    with torch.no_grad():
        layer.weight[~mask] = 0
    return layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24,), (1, 24), (5, 24), (2, 3, 24)])
@pytest.mark.parametrize("kind", [CondensedLinear, CSRLinear])
def test_result_equals_the_result_of_the_dense_layer(kind, shape, bias):
    mask = constant_fan_in(16, 24, 4, ablated=(0, 9))
    dense = masked_linear(mask, bias)
    x = torch.randn(shape)
    torch.testing.assert_close(kind(dense.weight, mask, dense.bias)(x), dense(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [CondensedLinear, CSRLinear])
def test_layer_without_live_weights_returns_its_bias(kind, bias):
    dense = masked_linear(torch.zeros(16, 24, dtype=torch.bool), bias)
    layer = kind(dense.weight, dense.weight != 0, dense.bias)
    x = torch.randn(5, 24)
    assert torch.equal(layer(x), dense(x))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [CondensedLinear, CSRLinear])
def test_result_in_half_precision_equals_the_result_of_the_dense_layer(kind, half):
    mask = constant_fan_in(16, 24, 4, ablated=(0, 9))
    dense = masked_linear(mask).to(half)
    x = torch.randn(5, 24, dtype=half)
    found, expected = kind(dense.weight, mask, dense.bias)(x), dense(x)
    assert found.dtype == half
    torch.testing.assert_close(found, expected)


def test_csr_takes_any_mask():
    mask = torch.rand(16, 24) < 0.2
    mask[3] = False
    dense = masked_linear(mask)
    x = torch.randn(5, 24)
    torch.testing.assert_close(CSRLinear(dense.weight, mask, dense.bias)(x), dense(x))


def test_condensed_layer_with_a_fan_in_that_is_not_constant_raises_an_error():
    mask = constant_fan_in(4, 6, 2)
    mask[0] = True
    with pytest.raises(ValueError, match="constant fan-in"):
        CondensedLinear(torch.randn(4, 6), mask, None)


def test_condensed_layer_stores_values_and_indices_of_live_weights_only():
    mask = constant_fan_in(16, 24, 4, ablated=(0,))
    layer = CondensedLinear(masked_linear(mask).weight, mask, None)
    assert layer.values.shape == layer.indices.shape == (15, 4)


def test_layers_that_are_saved_and_loaded_compute_the_same(tmp_path):
    mask = constant_fan_in(16, 24, 4)
    layers = [kind(masked_linear(mask).weight, mask, None) for kind in (CondensedLinear, CSRLinear)]
    model = nn.Sequential(layers[0], nn.Linear(16, 24), layers[1])
    torch.save(model, tmp_path / "model.pt")
    x = torch.randn(3, 24)
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    torch.testing.assert_close(loaded(x), model(x))


HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", [CondensedLinear, CSRLinear])
def test_result_under_autocast_equals_the_result_of_the_dense_layer(kind, given, half):
    """Autocast casts inputs to ``half``, except doubles, which it leaves as they are."""
    mask = constant_fan_in(16, 24, 4, ablated=(0, 9))
    dense = masked_linear(mask)
    if given is torch.float64:
        dense = dense.double()
    layer, x = kind(dense.weight, mask, dense.bias), torch.randn(5, 24, dtype=given)
    with torch.no_grad(), torch.autocast("cpu", half):
        expected, found = dense(x), layer(x)
    assert expected.dtype == (torch.float64 if given is torch.float64 else half)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
