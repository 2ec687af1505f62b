"""Fresh filters in dropped channels give an update step its gradients, and change no output."""

import copy

import pytest
import torch

from tests.support.channel_runs import HALF, SETTINGS, wrapped
from tests.support.training import backward, loss_of, train, train_step


def test_dropped_channels_have_no_gradient_without_fresh_filters():
    """Guards the reason for fresh filters."""
    model, optimizer = wrapped(**HALF)
    train(model, optimizer, 4)
    plain = copy.deepcopy(model)
    backward(plain, 5)
    for name, p in plain.named_parameters():
        if name in optimizer.masks:
            assert not p.grad[~optimizer.masks[name]].any(), name


@pytest.mark.parametrize("training", [True, False])
def test_fresh_filters_do_not_change_what_the_model_computes(training):
    model, optimizer = wrapped(**HALF)
    train(model, optimizer, 5)
    assert optimizer.is_update_step
    before = copy.deepcopy(model)
    optimizer.zero_grad()
    loss_of(model, 6).backward()
    assert any(layer.weight[~layer.mask].any() for layer in optimizer.layers), (
        "no fresh filter was put anywhere"
    )
    x = torch.randn(8, 3, 6, 6)
    for net in (before, model):
        net.train(training)
    if not training:
        # A training pass changes the statistics of live channels in the same way.
        loss_of(before.train(), 6)
        before.eval()
    with torch.no_grad():
        assert torch.equal(model(x), before(x))
    for name, p in before.named_parameters():
        if name in optimizer.masks:
            p.grad = None
    backward(before.train(), 6)
    for name, p in before.named_parameters():
        mask = optimizer.masks.get(name, torch.ones_like(p, dtype=torch.bool))
        mine = dict(model.named_parameters())[name].grad
        torch.testing.assert_close(mine[mask], p.grad[mask])


def test_fresh_filters_are_put_by_the_training_pass_of_an_update_step_only():
    model, optimizer = wrapped(**HALF)

    def is_zero():
        return not any(layer.weight[~layer.mask].any() for layer in optimizer.layers)

    train(model, optimizer, 4)
    loss_of(model, 5)
    assert is_zero()
    train_step(model, optimizer, 5)
    assert optimizer.is_update_step
    with torch.no_grad():
        loss_of(model, 6)
    assert is_zero()
    model.eval()
    loss_of(model, 6)
    assert is_zero()
    model.train()
    loss_of(model, 6)
    assert not is_zero()
    train_step(model, optimizer, 6)
    assert is_zero()


def test_micro_batches_of_a_step_see_the_same_fresh_filters():
    model, optimizer = wrapped(**HALF)
    train(model, optimizer, 2)
    loss_of(model, 3).backward()
    first = {layer.name: layer.weight.detach().clone() for layer in optimizer.layers}
    loss_of(model, 4).backward()
    for layer in optimizer.layers:
        assert torch.equal(layer.weight, first[layer.name])
    optimizer.step()
    assert optimizer.history[-1].grown > 0


def test_fresh_filters_go_with_detach():
    model, optimizer = wrapped()
    train(model, optimizer, SETTINGS["delta_t"] - 1)
    masks = optimizer.masks
    optimizer.zero_grad()
    loss_of(model, 9).backward()
    parameters = dict(model.named_parameters())
    assert any(parameters[name][~mask].any() for name, mask in masks.items())
    optimizer.detach()
    assert not any(parameters[name][~mask].any() for name, mask in masks.items())


@pytest.mark.parametrize("transformed", [False, True])
def test_pass_that_computes_with_other_tensors_than_the_weights_grows_nothing(transformed):
    """There the fresh filters would have no effect, so the gradients would be wrong."""
    model, optimizer = wrapped(**HALF)
    train(model, optimizer, 5)
    assert optimizer.is_update_step
    masks = optimizer.masks
    x = torch.randn(8, 3, 6, 6)

    def loss(weights):
        # A transform forbids writing to the model's own running statistics.
        statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
        return torch.func.functional_call(model, (weights, statistics), (x,)).square().mean()

    optimizer.zero_grad()
    if transformed:
        own = {name: weight.detach() for name, weight in model.named_parameters()}
        gradients = torch.func.grad(loss)(own)
        for name, weight in model.named_parameters():
            weight.grad = gradients[name]
    else:
        loss({name: 1.0 * weight for name, weight in model.named_parameters()}).backward()
    with pytest.warns(UserWarning, match="made no training pass before the update"):
        optimizer.step()
    assert optimizer.history[-1].skipped
    for name, mask in optimizer.masks.items():
        assert torch.equal(mask, masks[name])
    assert not any(layer.weight[~layer.mask].any() for layer in optimizer.layers)
