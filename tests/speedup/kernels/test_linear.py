"""Linear layers on live weights against dense ones in float64."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseopt.speedup import kernels
from sparseopt.speedup.kernels import calls
from tests.speedup.kernels.dense import check, lists_of, needs_kernels, rounded

pytestmark = needs_kernels

DTYPES = [torch.float32, torch.bfloat16]


def compare(leading, features, out, mask, dtype):
    check(
        lambda x, w, b: kernels.linear(x, w, b, lists_of(mask)),
        F.linear,
        rounded((*leading, features), dtype),
        rounded((out, features), dtype).float(),
        torch.randn(out),
        rounded((*leading, out), dtype),
        mask,
    )


@settings(max_examples=60)
@given(
    leading=st.lists(st.integers(1, 40), min_size=0, max_size=3).filter(
        lambda s: torch.Size(s).numel() <= 2000
    ),
    features=st.integers(1, 100),
    out=st.integers(1, 100),
    density=st.floats(0, 1),
    dtype=st.sampled_from(DTYPES),
)
def test_products_are_those_of_a_dense_layer(leading, features, out, density, dtype):
    mask = torch.rand(out, features) < density
    mask.view(-1)[torch.randint(mask.numel(), ())] = True
    compare(leading, features, out, mask, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_layers(dtype):
    mask = torch.rand(70, 3100) < 0.05
    mask[::3] = False  # rows without a live weight
    mask[:, ::4] = False
    compare((300,), 3100, 70, mask, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_token_with_rows_of_every_length(dtype):
    mask = torch.arange(70) < torch.arange(71)[torch.randperm(71)][:, None]
    compare((1,), 70, 71, mask, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", [1 << 16, (1 << 16) + 1])
def test_one_token_of_a_layer_with_more_inputs_than_sixteen_bits_count(features, dtype):
    mask = torch.rand(5, features) < 0.001
    mask[:, -1] = True
    compare((1,), features, 5, mask, dtype)


def test_lists_of_a_program_that_was_exported_before_they_had_short_channels():
    mask, x, values = torch.eye(4) > 0, torch.randn(1, 4), torch.arange(4.0)
    lists = lists_of(mask)
    older = lists.tensor[: len(lists.tensor) - lists.live // 2]
    assert calls.linear(x, values, None, older, lists.layout[:10]).equal(x * values)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_matrix_of_shapes(dtype):
    for tokens, features, out in itertools.product(
        (1, 3, 17, 64, 100, 300, 700, 2100), (1, 48, 61, 200), (1, 33, 64, 130)
    ):
        mask = torch.rand(out, features) < 0.2
        mask[0, 0] = True
        compare((tokens,), features, out, mask, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_input_may_have_any_strides(dtype):
    mask = torch.rand(9, 6) < 0.5
    lists, weight = lists_of(mask), torch.randn(9, 6)
    x = torch.randn(6, 4, 5).to(dtype).permute(2, 1, 0)
    y = kernels.linear(x, weight, None, lists)
    assert y.is_contiguous()
    assert torch.equal(y, kernels.linear(x.contiguous(), weight, None, lists))


def test_weight_gradient_alone():
    mask = torch.rand(4, 3) < 0.5
    x, weight = torch.randn(2, 3), torch.randn(4, 3, requires_grad=True)
    kernels.linear(x, weight, None, lists_of(mask)).sum().backward()
    torch.testing.assert_close(weight.grad, torch.ones(4, 2) @ x * mask)


@pytest.mark.parametrize("leading", [(0,), (3, 0, 2)])
def test_batch_without_tokens_is_empty(leading):
    weight = torch.randn(4, 3, requires_grad=True)
    x = torch.randn(*leading, 3, requires_grad=True)
    y = kernels.linear(x, weight, torch.zeros(4), lists_of(torch.rand(4, 3) < 0.5))
    y.sum().backward()
    assert y.shape == (*leading, 4)
    assert x.grad.shape == x.shape
    assert weight.grad.eq(0).all()


def test_bfloat16_weights_have_bfloat16_gradients():
    mask = torch.rand(4, 3) < 0.5
    x, weight = torch.randn(2, 3).bfloat16(), torch.randn(4, 3).bfloat16().requires_grad_()
    kernels.linear(x, weight, None, lists_of(mask)).sum().backward()
    assert weight.grad.dtype is torch.bfloat16
    expected = (torch.ones(4, 2) @ x.float() * mask).bfloat16()
    torch.testing.assert_close(weight.grad, expected)


@pytest.mark.parametrize(
    ("x", "weight", "words"),
    [
        (torch.ones(2, 4), torch.ones(4, 3), "..., 3"),
        (torch.ones(()), torch.ones(4, 3), "..., 3"),
        (torch.ones(2, 3), torch.ones(3, 4), "weight must"),
    ],
)
def test_tensor_that_does_not_fit_is_named(x, weight, words):
    with pytest.raises(ValueError, match=words):
        kernels.linear(x, weight, None, lists_of(torch.ones(4, 3) > 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 300, 33), (700, 64), (5, 2100)], ids=str)
def test_sums_over_tokens_are_those_of_float64(shape, dtype):
    torch.manual_seed(0)
    grad = torch.randn(shape).to(dtype)
    expected = grad.double().reshape(-1, shape[-1]).sum(0)
    found = calls.sum_tokens(grad)
    assert found.dtype == torch.float32
    assert (found - expected).norm() < 1e-5 * expected.norm()
