"""The gradient between `backward()` and `step()`."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.looking import (
    assert_dropped_are_fresh,
    logical,
)
from tests.support.nets import SPARSE_NAMES, loss_of, make
from tests.support.training import backward, dense_gradients, train, train_step
from tests.support.wrapping import wrap


def before_update(model, optimizer):
    """Train until the next step is an update step."""
    train(model, optimizer, 4, start=optimizer.steps)
    assert optimizer.is_update_step


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["static", "set", "rigl", "pruning"])
def test_gradients_are_masked_but_for_update_steps_of_rigl(
    method, dtype, channels_last, state, device
):
    model = make(dtype=dtype, channels_last=channels_last, device=device)
    optimizer = wrap(model, method=method, state=state)
    for t in range(1, 13):
        dense = dense_gradients(model, t)
        updating = optimizer.is_update_step
        backward(model, t)
        for name, p in model.named_parameters():
            expected = logical(dense[name])
            if name in optimizer.masks and not (updating and method == "rigl"):
                expected = np.where(logical(optimizer.masks[name]), expected, 0)
            np.testing.assert_array_equal(logical(p.grad), expected, err_msg=f"{name} at {t}")
        optimizer.step()


def test_gradient_of_an_update_step_is_dense():
    model = make()
    optimizer = wrap(model)
    before_update(model, optimizer)
    backward(model, 5)
    for layer in optimizer.layers:
        if layer.density < 1:
            assert logical(layer.weight.grad)[~logical(layer.mask)].any()


def test_gradient_of_an_update_step_of_set_is_masked():
    model = make()
    optimizer = wrap(model, method="set")
    before_update(model, optimizer)
    backward(model, 5)
    for layer in optimizer.layers:
        assert not logical(layer.weight.grad)[~logical(layer.mask)].any()


def test_clip_grad_norm_sees_the_norm_of_live_gradients(state):
    model = make()
    optimizer = wrap(model, state=state)
    dense = dense_gradients(model, 1)
    backward(model, 1)
    total = 0.0
    for name, gradient in dense.items():
        values = logical(gradient)
        if name in optimizer.masks:
            values = values[logical(optimizer.masks[name])]
        total += float((values**2).sum())
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm=0.01)
    assert norm.item() == pytest.approx(total**0.5, rel=1e-5)
    clipped = sum(float((logical(p.grad) ** 2).sum()) for p in model.parameters())
    assert clipped**0.5 == pytest.approx(0.01, rel=1e-3)
    optimizer.step()
    assert_dropped_are_fresh(optimizer)


def accumulate(model, indices):
    model.zero_grad()
    for index in indices:
        (loss_of(model, index) / len(indices)).backward()


@pytest.mark.parametrize("method", ["rigl", "set"])
def test_accumulated_micro_batches_are_masked_or_dense_as_a_whole(method):
    """On an update step of RigL the gradient is the mean over all micro-batches, dense."""
    model = make()
    optimizer = wrap(model, method=method)
    for t in range(1, 11):
        indices = [10 * t, 10 * t + 1, 10 * t + 2]
        untouched = make()
        untouched.load_state_dict(model.state_dict())
        accumulate(untouched, indices)
        accumulate(model, indices)
        updating = optimizer.is_update_step
        for (name, p), reference in zip(
            model.named_parameters(), untouched.parameters(), strict=True
        ):
            expected = logical(reference.grad)
            if name in optimizer.masks and not (updating and method == "rigl"):
                expected = np.where(logical(optimizer.masks[name]), expected, 0)
            np.testing.assert_array_equal(logical(p.grad), expected, err_msg=name)
        optimizer.step()


def test_growth_follows_the_accumulated_gradient():
    """Weights grow by the mean gradient, not by the gradient of the last micro-batch."""
    model = make()
    optimizer = wrap(model, alpha=0.5)
    before_update(model, optimizer)
    untouched = make()
    untouched.load_state_dict(model.state_dict())
    accumulate(untouched, [50, 51, 52])
    accumulate(model, [50, 51, 52])
    old = {name: logical(mask) for name, mask in optimizer.masks.items()}
    optimizer.step()
    fraction = optimizer.history[-1].fraction
    params = dict(untouched.named_parameters())
    for name in SPARSE_NAMES:
        if old[name].all():
            continue
        growth = np.abs(logical(params[name].grad))
        live, k = old[name], int(fraction * int(old[name].sum()))
        magnitude = np.abs(logical(params[name]))
        positions = np.flatnonzero(live)
        dropped = positions[np.argsort(magnitude[positions], kind="stable")[:k]]
        survivors = live.copy()
        survivors[dropped] = False
        candidates = np.flatnonzero(~survivors)
        grown = candidates[np.argsort(-growth[candidates], kind="stable")[:k]]
        expected = survivors.copy()
        expected[grown] = True
        np.testing.assert_array_equal(logical(optimizer.masks[name]), expected, err_msg=name)


def test_update_steps_do_not_touch_weights_of_any_layer_but_to_drop_and_grow():
    model = make()
    optimizer = wrap(model, "AdamW")
    before_update(model, optimizer)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    old = {name: mask.clone() for name, mask in optimizer.masks.items()}
    train_step(model, optimizer, 5)
    for name, p in model.named_parameters():
        if name in old:
            stayed = old[name] & optimizer.masks[name]
            assert torch.equal(p[stayed], before[name][stayed])
            assert not p[~optimizer.masks[name]].any()
        else:
            assert torch.equal(p, before[name])


@pytest.mark.parametrize("method", ["static", "rigl", "snfs"])
def test_expanded_gradients_train_as_their_copies(method, state):
    runs = []
    for copied in (True, False):
        torch.manual_seed(0)
        model = nn.Linear(96, 96)
        optimizer = wrap(model, "SGD", method=method, state=state, delta_t=2)
        for step in range(6):
            for parameter in model.parameters():
                gradient = torch.tensor(0.1 * (step + 1)).expand(parameter.shape)
                parameter.grad = gradient.clone() if copied else gradient
            optimizer.step()
        runs.append((model.weight.detach(), optimizer.masks["weight"]))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])
    assert not runs[0][0][~runs[0][1]].any()
