"""NaN and infinity: a dropped weight spreads none, and no gradient hides them."""

import pytest
import torch
import torch.nn.functional as F

from sparseopt.speedup import kernels
from tests.speedup.kernels.dense import lists_of, needs_kernels

pytestmark = needs_kernels

BAD = [float("nan"), float("inf"), float("-inf")]


def with_a_bad_sample(bad, dtype):
    """The output, and the places where a live weight multiplies the bad input of sample 3."""
    mask = torch.rand(6, 5, 3, 3) < 0.2
    x, weight = torch.randn(20, 5, 9, 9), torch.randn(mask.shape)
    x[3, 2, 4, 4] = bad
    y = kernels.conv2d(x.to(dtype), weight, None, lists_of(mask, padding=1))
    return y, F.conv2d((~x.isfinite()).float(), mask.float(), None, 1, 1) > 0


@pytest.mark.parametrize("bad", BAD)
def test_outputs_are_bad_where_a_live_weight_meets_a_bad_input(bad):
    y, met = with_a_bad_sample(bad, torch.float32)
    assert torch.equal(~y.isfinite(), met)


@pytest.mark.parametrize("bad", BAD)
def test_bfloat16_may_spread_a_bad_input_to_the_other_sample_of_its_pair(bad):
    y, met = with_a_bad_sample(bad, torch.bfloat16)
    assert not y[met].isfinite().any()
    met[2] = met[3]
    assert y[~met].isfinite().all()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("where", [(3, 2, 4, 4), (0, 0, 0, 8)])
def test_bad_input_makes_gradients_of_weights_bad(bad, dtype, where):
    mask = torch.ones(6, 5, 3, 3) > 0
    x, weight = torch.randn(20, 5, 9, 9), torch.randn(mask.shape, requires_grad=True)
    x[where] = bad
    kernels.conv2d(x.to(dtype), weight, None, lists_of(mask)).nan_to_num(0, 0, 0).sum().backward()
    assert not weight.grad.isfinite().all()


@pytest.mark.parametrize("bad", BAD)
def test_bad_gradient_reaches_inputs_and_weights(bad):
    mask = torch.rand(6, 5) < 0.4
    mask[2, 3] = True
    x = torch.randn(7, 5, requires_grad=True)
    weight = torch.randn(mask.shape, requires_grad=True)
    grad = torch.randn(7, 6)
    grad[1, 2] = bad
    kernels.linear(x, weight, None, lists_of(mask)).backward(grad)
    assert not x.grad[1][mask[2]].isfinite().any()
    assert x.grad[1][~mask[2]].isfinite().all()
    assert not weight.grad[2][mask[2]].isfinite().any()
    assert weight.grad[torch.arange(6) != 2].isfinite().all()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_token_with_a_bad_input_makes_bad_only_what_its_weights_reach(bad, dtype):
    mask, x = torch.rand(40, 50) < 0.3, torch.randn(1, 50)
    x[0, 7] = bad
    y = kernels.linear(x.to(dtype), torch.randn(mask.shape), None, lists_of(mask))
    assert torch.equal(~y[0].isfinite(), mask[:, 7])


def test_bad_values_of_dropped_weights_are_not_looked_at():
    mask = torch.eye(4) > 0
    weight = torch.where(mask, 2.0, float("nan"))
    assert kernels.linear(torch.ones(3, 4), weight, None, lists_of(mask)).eq(2).all()


def test_nan_stays_a_nan_when_it_is_rounded():
    lists = lists_of(torch.ones(1, 1) > 0)
    # A NaN whose only mantissa bit is the lowest: without it the number would be infinite.
    x = torch.tensor([[0x7F800001]], dtype=torch.int32).view(torch.float32)
    weight = torch.ones(1, 1)
    assert kernels.linear(x, weight, None, lists).isnan().all()
    assert kernels.linear(torch.ones(1, 1).bfloat16(), weight * x, None, lists).isnan().all()
