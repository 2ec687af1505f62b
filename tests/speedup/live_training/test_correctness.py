"""A sped-up model computes what the dense masked model does, to rounding."""

import copy
from typing import NamedTuple

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from sparseopt import SparseOptimizer, SpeedUp, speed_up
from tests.speedup.kernels.dense import needs_kernels
from tests.speedup.live_training.nets import (
    ConvNet,
    DenseNet,
    Tokens,
    TorchvisionDenseNet,
    full_plan,
    images,
    labels,
    loss_of,
    make,
    train,
    wrap,
)

pytestmark = needs_kernels

KINDS = [ConvNet, DenseNet, TorchvisionDenseNet, Tokens]


def error_of(gradients, exact):
    """Relative distance from gradients in float64, of all parameters together."""
    difference = sum((gradients[n].double() - exact[n]).square().sum() for n in exact)
    return float((difference / sum(g.square().sum() for g in exact.values())).sqrt())


def gradients_of(model):
    model.zero_grad()
    loss_of(model).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


class Run(NamedTuple):
    """A sped-up model, dense copies in float32 and float64, and objects to keep alive."""

    model: nn.Module
    dense: nn.Module
    exact: nn.Module
    optimizer: SparseOptimizer
    handle: SpeedUp


def sped_up(kind=ConvNet, changes=None, **settings):
    model = make(kind, **settings)
    optimizer = wrap(model, **{"method": "static", "density": 0.3, **(changes or {})})
    dense, exact = copy.deepcopy(model), copy.deepcopy(model).double()
    handle = speed_up(model, optimizer, plan=full_plan(model, optimizer))
    return Run(model, dense, exact, optimizer, handle)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_as_near_to_float64_as_those_of_torch(kind):
    run = sped_up(kind)
    model, dense, exact, optimizer, _ = run
    assert "live" in str(run.handle.plan)
    exact_gradients = gradients_of(exact)
    for layer in optimizer.layers:
        exact_gradients[layer.name][~layer.mask] = 0
    found, torchs = gradients_of(model), gradients_of(dense)
    for layer in optimizer.layers:
        assert not found[layer.name][~layer.mask].any()
        torchs[layer.name][~layer.mask] = 0
    assert error_of(found, exact_gradients) <= 2 * error_of(torchs, exact_gradients) + 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_under_autocast_are_as_near_to_float64_as_those_of_torch(kind):
    model, dense, exact, optimizer, _ = sped_up(kind)
    exact_gradients = gradients_of(exact)
    with torch.autocast("cpu", torch.bfloat16):
        found, torchs = gradients_of(model), gradients_of(dense)
    for layer in optimizer.layers:
        exact_gradients[layer.name][~layer.mask] = 0
        torchs[layer.name][~layer.mask] = 0
    assert error_of(found, exact_gradients) <= 1.5 * error_of(torchs, exact_gradients)


@pytest.mark.parametrize(
    "norm",
    [
        {},
        {"momentum": None},
        {"affine": False},
        {"track_running_stats": False},
        {"momentum": 0.3, "eps": 1e-2},
    ],
    ids=str,
)
def test_every_kind_of_batch_norm_keeps_the_same_statistics(norm):
    run = sped_up(**norm)
    model, dense = run.model, run.dense
    for index in range(3):
        torch.testing.assert_close(model(images(index)), dense(images(index)))
    buffers = dict(dense.named_buffers())
    assert len(buffers) == (0 if norm == {"track_running_stats": False} else 9)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, buffers[name])
    torch.testing.assert_close(model.eval()(images(4)), dense.eval()(images(4)))


@pytest.mark.parametrize("kind", [ConvNet, DenseNet, TorchvisionDenseNet])
def test_maps_stay_in_the_layout_of_the_kernels(kind):
    run = sped_up(kind, p=0.5)
    seen = {}
    for name, module in run.model.named_modules():
        if isinstance(
            module, (nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Dropout, nn.MaxPool2d, nn.AvgPool2d)
        ):

            def note(module, inputs, output, name=name):
                seen[name] = all(x.permute(1, 2, 3, 0).is_contiguous() for x in (*inputs, output))

            module.register_forward_hook(note)
    run.model(images())
    outside = {name for name, is_inside in seen.items() if not is_inside}
    assert len(seen) >= 12
    # The first convolution gets the images as they are.
    assert outside == {next(iter(seen))}


def test_places_of_maxima_are_the_same_in_both_layouts():
    class WithPlaces(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3)
            self.pool = nn.MaxPool2d(2, return_indices=True)

        def forward(self, x):
            return self.pool(self.conv(x))

    torch.manual_seed(0)
    model = WithPlaces()
    optimizer = wrap(model, method="static", init="uniform", density=1.0)
    dense = copy.deepcopy(model)
    speed_up(model, optimizer, plan=full_plan(model, optimizer))
    for found, expected in zip(model(images()), dense(images()), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_the_same_way(kind):
    """Over a mask update, in which the same weights are chosen."""
    runs = []
    for fast in (False, True):
        model = make(kind)
        optimizer = wrap(model, method="rigl")
        if fast:
            speed_up(model, optimizer, plan=full_plan(model, optimizer))
        runs.append((train(model, optimizer, 7), optimizer.masks, dict(model.named_parameters())))
    (losses, masks, weights), (fast_losses, fast_masks, fast_weights) = runs
    assert fast_losses == pytest.approx(losses, rel=1e-3)
    for name, mask in masks.items():
        assert torch.equal(mask, fast_masks[name])
    for name, weight in weights.items():
        torch.testing.assert_close(weight, fast_weights[name], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 5, 17])
def test_batches_and_maps_of_other_sizes_are_right(size):
    run = sped_up()
    model, dense = run.model, run.dense
    assert type(model.stem) is not nn.Conv2d
    x = images(size=size, side=11)
    torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-5)


class WithReluModules(nn.Module):
    def __init__(self, inplace=True):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.conv2, self.norm2 = nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=inplace)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.relu(self.norm1(self.conv1(x)))
        x = self.relu(self.norm2(self.conv2(x)))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("inplace", [True, False])
def test_gradients_through_modules_of_relu_are_those_of_torch(inplace):
    run = sped_up(WithReluModules, inplace=inplace)
    found, torchs = gradients_of(run.model), gradients_of(run.dense)
    for layer in run.optimizer.layers:
        torchs[layer.name][~layer.mask] = 0
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, torchs[name], rtol=1e-3, atol=1e-5)
    checkpointed = torch.utils.checkpoint.checkpoint(run.model, images(), use_reentrant=False)
    run.model.zero_grad()
    nn.functional.cross_entropy(checkpointed, labels()).backward()
    for name, parameter in run.model.named_parameters():
        torch.testing.assert_close(parameter.grad, found[name], rtol=1e-4, atol=1e-6)


def test_hook_on_a_normalisation_before_relu_sees_the_gradient_of_torch():
    run = sped_up(WithReluModules, inplace=False)
    kept = []
    for model in (run.model, run.dense):
        model.norm1.register_forward_hook(lambda module, inputs, output: kept.append(output))
        loss = loss_of(model)
        kept[-1] = torch.autograd.grad(loss, kept[-1])[0]
    torch.testing.assert_close(*kept, rtol=1e-3, atol=1e-6)


def test_product_refuses_a_map_with_other_channels_as_torch_does():
    model = nn.Sequential(nn.Conv2d(8, 4, 1, bias=False), nn.Conv2d(4, 4, 3))
    plan = {"0": {"2x8x5x5": "product"}, "1": {"2x4x5x5": "live"}}
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), model, total_steps=1000, init="uniform"
    )
    speed_up(model, optimizer, plan=plan)
    assert model(torch.randn(2, 8, 5, 5)).shape == (2, 4, 3, 3)
    with pytest.raises(RuntimeError):
        model[0](torch.randn(2, 16, 5, 5))
