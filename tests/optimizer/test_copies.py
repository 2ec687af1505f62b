"""Copying and pickling, and one method for several optimizers."""

import copy
import pickle

import pytest
import torch

from sparseopt import RigL
from tests.support.looking import assert_dropped_are_fresh, assert_same_weights, logical
from tests.support.nets import make
from tests.support.training import backward, train, train_step
from tests.support.wrapping import wrap


def continue_both(model, optimizer, other_model, other, start, steps=12):
    train(model, optimizer, steps, start=start)
    train(other_model, other, steps, start=start)
    assert_same_weights(model, other_model)
    assert optimizer.history == other.history
    assert optimizer.steps == other.steps
    for name, mask in optimizer.masks.items():
        assert torch.equal(mask, other.masks[name])


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("steps", [0, 7])
@pytest.mark.parametrize("method", ["set", "rigl", "pruning"])
def test_copy_of_model_and_optimizer_trains_alike_and_independently(method, steps, how, state):
    model = make()
    optimizer = wrap(model, "AdamW", method=method, state=state)
    train(model, optimizer, steps)
    pair = (model, optimizer)
    other_model, other = (
        copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
    )
    assert other.param_groups[0]["params"][0] is next(iter(other_model.parameters()))
    assert other.inner is not optimizer.inner
    before = [p.detach().clone() for p in other_model.parameters()]
    train(model, optimizer, 1, start=steps)
    for p, old in zip(other_model.parameters(), before, strict=True):
        assert torch.equal(p, old), "the copy shares weights with the original"
    train(other_model, other, 1, start=steps)
    continue_both(model, optimizer, other_model, other, steps + 1)
    assert_dropped_are_fresh(other)
    backward(other_model, 3)
    for layer in other.layers:
        assert not logical(layer.weight.grad)[~logical(layer.mask)].any()


def test_copy_without_its_model_still_masks_its_own_parameters():
    model = make()
    optimizer = copy.deepcopy(wrap(model))
    layer = next(layer for layer in optimizer.layers if layer.density < 1)
    assert all(layer.weight is not p for p in model.parameters())
    (layer.weight * torch.ones_like(layer.weight)).sum().backward()
    assert torch.equal(layer.weight.grad.bool(), layer.mask)


def test_method_instance_serves_two_optimizers():
    method = RigL()
    models = [make(), make()]
    first, second = (wrap(model, method=method) for model in models)
    alone_model = make()
    alone = wrap(alone_model, method=RigL())
    for t in range(1, 21):
        train_step(models[0], first, t)
        train_step(models[1], second, t)
        train_step(alone_model, alone, t)
    assert_same_weights(models[0], alone_model)
    assert_same_weights(models[1], alone_model)
