"""A sped-up model computes what the dense masked model does, to rounding."""

import copy
from typing import NamedTuple

import pytest
import torch
from torch import nn

from sparseopt import SparseOptimizer, SpeedUp, speed_up
from tests.speedup.kernels.dense import needs_kernels
from tests.speedup.live_training.nets import (
    ConvNet,
    Tokens,
    full_plan,
    images,
    loss_of,
    make,
    train,
    wrap,
)

pytestmark = needs_kernels


def error_of(gradients, exact):
    """Relative distance from gradients in float64, of all parameters together."""
    difference = sum((gradients[n].double() - exact[n]).square().sum() for n in exact)
    return float((difference / sum(g.square().sum() for g in exact.values())).sqrt())


def gradients_of(model):
    model.zero_grad()
    loss_of(model).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


class Run(NamedTuple):
    """A model that is sped up, dense copies in float32 and float64, and what must be kept."""

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


@pytest.mark.parametrize("kind", [ConvNet, Tokens])
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


@pytest.mark.parametrize("kind", [ConvNet, Tokens])
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


def test_maps_stay_in_the_layout_of_the_kernels_until_something_copies_them():
    run = sped_up(p=0.5)
    seen = {}
    for name, module in run.model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Dropout, nn.MaxPool2d, nn.AvgPool2d)):

            def note(module, inputs, output, name=name):
                seen[name] = output.permute(1, 2, 3, 0).is_contiguous()

            module.register_forward_hook(note)
    run.model(images())
    # torch.cat returns contiguous maps, so that the next convolution brings them back.
    outside = {name for name, is_inside in seen.items() if not is_inside}
    assert len(seen) == 12
    assert outside == {"norm", "max", "mean"}


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


@pytest.mark.parametrize("kind", [ConvNet, Tokens])
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
