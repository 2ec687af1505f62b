"""Gradients that are not finite, missing, or not written by `backward()`."""

import copy
import itertools
import warnings

import pytest
import torch
from torch import nn

from sparseopt import SparseOptimizer
from tests.support.catalogue import NEEDS_CLOSURE, model_for, torch_optimizers
from tests.support.looking import (
    assert_dropped_are_fresh,
    assert_same_weights,
    assert_unchanged,
    logical,
    snapshot,
)
from tests.support.nets import loss_of, make
from tests.support.training import backward, train
from tests.support.wrapping import wrap


def before_update(model, optimizer):
    """Train until the next step is an update step."""
    train(model, optimizer, 4, start=optimizer.steps)
    assert optimizer.is_update_step


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("method", "where"),
    [
        *itertools.product(["set", "rigl", "pruning"], ["live", "bias"]),
        ("rigl", "dropped"),  # the other methods never read the gradient of a dropped weight
    ],
)
def test_non_finite_gradient_skips_the_update(method, where, value, state):
    """Nothing moves, t advances, history says so, and one warning is given."""
    model = make()
    optimizer = wrap(model, "AdamW", method=method, state=state)
    before_update(model, optimizer)
    backward(model, 5)
    layer = next(layer for layer in optimizer.layers if layer.name == "fc1.weight")
    target = {"live": layer.mask, "dropped": ~layer.mask}.get(where)
    if target is None:
        model.fc1.bias.grad[0] = value
    else:
        layer.weight.grad.view(-1)[int(target.view(-1).nonzero()[0])] = value

    before, steps = snapshot(optimizer, model), optimizer.steps
    with pytest.warns(UserWarning, match="(?i)finite") as caught:
        optimizer.step()
    assert len(caught) == 1
    record = optimizer.history[-1]
    assert (record.step, record.skipped) == (steps + 1, True)
    assert (record.dropped, record.grown) == (0, 0)
    assert optimizer.steps == steps + 1

    after = snapshot(optimizer, model)
    after["steps"], after["history"] = before["steps"], before["history"]
    assert_unchanged(before, after)


def test_skipped_updates_warn_once_and_training_goes_on():
    model = make()
    optimizer = wrap(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for t in range(1, 21):
            backward(model, t)
            if optimizer.is_update_step and t < 15:
                model.fc1.weight.grad.fill_(float("nan"))
            optimizer.step()
    assert len([w for w in caught if "finite" in str(w.message).lower()]) == 1
    assert [record.skipped for record in optimizer.history] == [True, True, False, False]
    assert all(torch.isfinite(p).all() for p in model.parameters())
    for layer in optimizer.layers:
        assert layer.live == layer.target


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["SGD", "AdamW", "Rprop", "Adagrad"])
def test_non_finite_gradient_of_a_dropped_weight_never_leaks(name, value, state):
    """Gradients are masked by selection, not by multiplication: inf * 0 would be NaN."""
    model = make()
    optimizer = wrap(model, name, state=state)
    for t in range(1, 4):
        spoiled = {
            layer.name: torch.where(layer.mask, 0.01, value).to(layer.weight)
            for layer in optimizer.layers
        }
        optimizer.zero_grad()
        loss = loss_of(model, t)
        loss = loss + sum((layer.weight * spoiled[layer.name]).sum() for layer in optimizer.layers)
        loss.backward()
        for layer in optimizer.layers:
            assert torch.isfinite(layer.weight.grad).all(), layer.name
        assert torch.isfinite(nn.utils.get_total_norm([p.grad for p in model.parameters()]))
        optimizer.step()
        assert_dropped_are_fresh(optimizer)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Rprop", "Adagrad"])
def test_gradients_put_there_by_hand_resurrect_nothing(name, state):
    """A gradient without `backward()` meets no hook, and is masked too."""
    model = make()
    optimizer = wrap(model, name, state=state, method="static")
    for t in range(6):
        generator = torch.Generator().manual_seed(t)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
            if p.ndim > 1 and t == 3:
                p.grad = torch.where(_mask_of(optimizer, p), p.grad, float("inf"))
        optimizer.step()
        assert_dropped_are_fresh(optimizer)
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("name", [n for n in torch_optimizers() if n not in NEEDS_CLOSURE])
def test_gradients_of_dropped_weights_put_there_by_hand_move_no_live_weight(name):
    """Optimizers such as Muon and Adafactor mix the entries of a matrix."""
    model, other = model_for(name), model_for(name)
    optimizers = [wrap(net, name, method="static") for net in (model, other)]
    for t in range(4):
        generator = torch.Generator().manual_seed(t)
        for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            theirs.grad = mine.grad.clone()
        for layer in optimizers[0].layers:
            layer.weight.grad = torch.where(layer.mask, layer.weight.grad, 0.0)
        for optimizer in optimizers:
            optimizer.step()
    assert_same_weights(model, other)


def _mask_of(optimizer, parameter):
    return next(layer.mask for layer in optimizer.layers if layer.weight is parameter)


def test_layer_without_a_gradient_is_left_out_of_the_update():
    model = make()
    optimizer = wrap(model, "AdamW")
    before_update(model, optimizer)
    backward(model, 5)
    model.conv2.weight.grad = None
    before = {layer.name: layer.mask.clone() for layer in optimizer.layers}
    optimizer.step()
    assert torch.equal(optimizer.masks["conv2.weight"], before["conv2.weight"])
    assert not torch.equal(optimizer.masks["fc1.weight"], before["fc1.weight"])
    assert not optimizer.history[-1].skipped


def test_layer_that_is_never_used_keeps_its_mask():
    class WithSpare(nn.Module):
        def __init__(self):
            super().__init__()
            self.used = nn.Linear(12, 12)
            self.spare = nn.Linear(12, 12)

        def forward(self, x):
            return self.used(x)

    model = WithSpare()
    optimizer = SparseOptimizer(
        torch.optim.AdamW(model.parameters(), lr=0.01),
        model,
        density=0.3,
        init="er",
        delta_t=2,
        total_steps=20,
    )
    before = {name: mask.clone() for name, mask in optimizer.masks.items()}
    spare = model.spare.weight.detach().clone()
    for _ in range(10):
        optimizer.zero_grad()
        model(torch.randn(4, 12)).square().sum().backward()
        optimizer.step()
    assert torch.equal(optimizer.masks["spare.weight"], before["spare.weight"])
    assert torch.equal(model.spare.weight, spare)
    assert not torch.equal(optimizer.masks["used.weight"], before["used.weight"])


def test_copy_of_the_model_is_not_masked():
    """Hooks are on the parameters of the optimizer, not on copies."""
    model = make()
    optimizer = wrap(model)
    other = copy.deepcopy(model)
    backward(other, 1)
    dropped = ~logical(optimizer.masks["fc1.weight"])
    assert logical(other.fc1.weight.grad)[dropped].any()


def test_gradients_keep_their_dtype_layout_and_identity():
    model = make(dtype=torch.bfloat16, channels_last=True)
    optimizer = wrap(model)
    backward(model, 1)
    gradient = model.conv2.weight.grad
    assert gradient.dtype == torch.bfloat16
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    optimizer.step()
    assert model.conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert model.conv2.weight.grad is gradient
    assert model.conv2.weight.grad.shape == model.conv2.weight.shape
