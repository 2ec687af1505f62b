"""Batch normalisation in the kernels' layout, beside torch's in float64."""

import pytest
import torch
import torch.nn.functional as F

from sparseopt.speedup.kernels.batch_norm import batch_norm, knows_batch_norm, relu
from sparseopt.speedup.kernels.calls import kernel_layout
from tests.speedup.kernels.dense import needs_kernels

pytestmark = needs_kernels

EPS = 1e-5
SHAPES = [(5, 2, 1, 1), (16, 5, 1, 2), (37, 3, 7, 9), (64, 4, 16, 16)]
BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 4e-3}


def map_of(shape, dtype=torch.float32, offset=0.0):
    return kernel_layout(torch.randn(shape) + offset).to(dtype).requires_grad_()


def of_channels(shape):
    return torch.rand(shape[1]).requires_grad_(), torch.randn(shape[1]).requires_grad_()


def exact(x, weight, bias, grad):
    """Output and gradients in float64."""
    leaves = [one.detach().double().requires_grad_() for one in (x, weight, bias)]
    y = F.batch_norm(leaves[0], None, None, *leaves[1:], training=True, eps=EPS)
    return y, torch.autograd.grad(y, leaves, grad.double())


def error(found, expected):
    return float((found.detach().double() - expected.detach()).norm() / expected.detach().norm())


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients_are_those_of_torch_in_float64(shape, dtype):
    torch.manual_seed(0)
    x, grad = map_of(shape, dtype), map_of(shape, dtype).detach()
    weight, bias = of_channels(shape)
    y, mean, variance = batch_norm(x, weight, bias, EPS)
    assert y.dtype == dtype
    assert y.permute(1, 2, 3, 0).is_contiguous()
    expected, gradients = exact(x, weight, bias, grad)
    assert error(y, expected) < BOUNDS[dtype]
    dims = (0, 2, 3)
    torch.testing.assert_close(mean, x.detach().double().mean(dims).float())
    torch.testing.assert_close(variance, x.detach().double().var(dims).float())
    dx, dweight, dbias = torch.autograd.grad(y, (x, weight, bias), grad)
    assert error(dweight, gradients[1]) < 1e-5
    assert error(dbias, gradients[2]) < 1e-5
    assert error(dx, gradients[0]) < BOUNDS[dtype]


def test_mean_far_from_zero_costs_no_precision():
    torch.manual_seed(0)
    x, grad = map_of((64, 4, 8, 8), offset=1000.0), map_of((64, 4, 8, 8)).detach()
    weight, bias = of_channels(x.shape)
    y, *_ = batch_norm(x, weight, bias, EPS)
    expected, gradients = exact(x, weight, bias, grad)
    torchs = F.batch_norm(x, None, None, weight, bias, training=True, eps=EPS)
    assert error(y, expected) <= error(torchs, expected) + 1e-6
    (dx,) = torch.autograd.grad(y, x, grad)
    (torchs_dx,) = torch.autograd.grad(torchs, x, grad)
    assert error(dx, gradients[0]) <= error(torchs_dx, gradients[0]) + 1e-6


@pytest.mark.parametrize("affine", [True, False])
def test_gradients_are_made_only_where_they_are_wanted(affine):
    x = map_of((4, 3, 2, 2))
    weight, bias = of_channels(x.shape) if affine else (None, None)
    if affine:
        weight.requires_grad_(False)
    y, mean, variance = batch_norm(x, weight, bias, EPS)
    assert not mean.requires_grad
    assert not variance.requires_grad
    y.square().sum().backward()
    assert x.grad is not None
    if affine:
        assert weight.grad is None
        assert bias.grad is not None


def test_derivatives_of_second_order_are_those_of_torch():
    torch.manual_seed(0)
    x, (weight, bias) = map_of((6, 3, 4, 2)), of_channels((6, 3))
    found = []
    for ours in (True, False):
        y = (
            batch_norm(x, weight, bias, EPS)[0]
            if ours
            else F.batch_norm(x, None, None, weight, bias, training=True, eps=EPS)
        )
        first = torch.autograd.grad(y.pow(3).sum(), (x, weight), create_graph=True)
        loss = sum(one.square().sum() for one in first)
        found.append(torch.autograd.grad(loss, (x, weight, bias)))
    for ours, torchs in zip(*found, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-3, atol=1e-3)


def test_results_do_not_depend_on_the_number_of_threads():
    x, grad = map_of((64, 5, 32, 32)), map_of((64, 5, 32, 32)).detach()
    weight, bias = of_channels(x.shape)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y, mean, variance = batch_norm(x, weight, bias, EPS)
            found.append((y, mean, variance, *torch.autograd.grad(y, (x, weight, bias), grad)))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


def test_input_that_the_kernel_does_not_know_is_left_to_torch():
    x = map_of((4, 3, 2, 2))
    assert knows_batch_norm(x, None, torch.ones(3))
    assert not knows_batch_norm(x, torch.ones(3, dtype=torch.float64))
    assert not knows_batch_norm(x.double())
    assert not knows_batch_norm(torch.ones(1, 3, 1, 1))
    with torch.device("meta"):
        assert not knows_batch_norm(torch.ones(4, 3, 2, 2))


def both(x, weight, bias, inplace, relu=relu):
    y, *_ = batch_norm(x, weight, bias, EPS)
    return relu(y, inplace=inplace)


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_relu_after_batch_norm_has_the_gradients_of_both(shape, dtype, inplace):
    torch.manual_seed(0)
    x, grad = map_of(shape, dtype), map_of(shape, dtype).detach()
    weight, bias = of_channels(shape)
    y = both(x, weight, bias, inplace)
    plain = both(x, weight, bias, inplace, F.relu)
    assert torch.equal(y, plain)
    found = torch.autograd.grad(y, (x, weight, bias), grad)
    expected = torch.autograd.grad(plain, (x, weight, bias), grad)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_gradient_of_what_is_normalised_is_there_for_whoever_looks():
    x, (weight, bias) = map_of((6, 3, 4, 2)), of_channels((6, 3))
    y, *_ = batch_norm(x, weight, bias, EPS)
    z = relu(y, inplace=False)
    y.retain_grad()
    (2 * z + y).sum().backward()
    assert torch.equal(y.grad, 2.0 * (y > 0) + 1)
    y, *_ = batch_norm(x, weight, bias, EPS)
    (found,) = torch.autograd.grad(relu(y, inplace=False).sum(), y)
    assert torch.equal(found, (y > 0).float())


def test_relu_of_what_has_hooks_or_was_changed_is_left_to_torch():
    x, (weight, bias) = map_of((6, 3, 4, 2)), of_channels((6, 3))
    y, *_ = batch_norm(x, weight, bias, EPS)
    y.register_hook(lambda grad: grad)
    assert relu(y, inplace=False) is None
    y, *_ = batch_norm(x, weight, bias, EPS)
    assert relu(y.add_(1), inplace=False) is None
    assert relu(map_of((6, 3, 4, 2)), inplace=False) is None
    with torch.no_grad():
        y, *_ = batch_norm(x, weight, bias, EPS)
        assert relu(y, inplace=False) is None


@pytest.mark.parametrize("inplace", [True, False])
def test_derivatives_of_second_order_through_relu_are_those_of_torch(inplace):
    torch.manual_seed(0)
    x, (weight, bias) = map_of((6, 3, 4, 2)), of_channels((6, 3))
    found = []
    for one in (relu, F.relu):
        y = both(x, weight, bias, inplace, one)
        first = torch.autograd.grad(y.pow(3).sum(), (x, weight), create_graph=True)
        loss = sum(one.square().sum() for one in first)
        found.append(torch.autograd.grad(loss, (x, weight, bias)))
    for ours, torchs in zip(*found, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-3, atol=1e-3)
