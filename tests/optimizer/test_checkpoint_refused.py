"""A checkpoint that does not fit raises an error that names what differs, and changes nothing."""

import warnings

import pytest
import torch
from torch import nn

from sparseopt import CheckpointError, SparseOptimizer
from tests.support.catalogue import build
from tests.support.looking import (
    assert_dropped_are_fresh,
    assert_unchanged,
    snapshot,
)
from tests.support.nets import make
from tests.support.resuming import SETTINGS, wrap
from tests.support.training import train


def refused(optimizer, model, saved, match):
    before = snapshot(optimizer, model)
    with pytest.raises(CheckpointError, match=match) as caught:
        optimizer.load_state_dict(saved)
    assert_unchanged(before, snapshot(optimizer, model))
    train(model, optimizer, 3, start=optimizer.steps)
    assert_dropped_are_fresh(optimizer)
    return str(caught.value)


class Wider(nn.Module):
    """The small net with another width of `fc1`."""

    def __init__(self):
        super().__init__()
        small = make()
        self.conv1, self.norm, self.conv2 = small.conv1, small.norm, small.conv2
        self.fc1 = nn.Linear(72, 24)
        self.fc2 = nn.Linear(24, 5)

    forward = type(make()).forward


@pytest.mark.parametrize("steps", [0, 7])
def test_another_model_is_refused_by_the_layers_name(steps, state):
    other = make(Wider)
    its = wrap(other, state=state)
    train(other, its, 7)
    model = make()
    optimizer = wrap(model, state=state)
    train(model, optimizer, steps)
    refused(optimizer, model, its.state_dict(), r"fc1\.weight")


def test_model_of_another_size_is_refused():
    other = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    its = wrap(other)
    model = make()
    optimizer = wrap(model)
    refused(optimizer, model, its.state_dict(), r"0\.weight|conv1\.weight|layers")


@pytest.mark.parametrize(("theirs", "mine"), [("set", "rigl"), ("rigl", "pruning")])
def test_another_method_is_refused_and_both_are_named(theirs, mine):
    other = make()
    its = wrap(other, method=theirs)
    train(other, its, 7)
    model = make()
    optimizer = wrap(model, method=mine)
    message = refused(optimizer, model, its.state_dict(), theirs)
    assert mine in message


def test_another_layer_set_is_refused_by_the_layers_name():
    other, model = make(), make()
    for net in (other,):
        net.fc2.weight.requires_grad_(False)
    its = wrap(other)
    train(other, its, 7)
    optimizer = wrap(model)
    refused(optimizer, model, its.state_dict(), r"fc2\.weight")


def frozen(model):
    model.fc1.weight.requires_grad_(False)
    return wrap(model)


def dense_group(model):
    rest = [p for p in model.parameters() if p is not model.fc1.weight]
    dense = {"params": [model.fc1.weight], "density": False}
    return SparseOptimizer(torch.optim.AdamW([dense, {"params": rest}]), model, **SETTINGS)


@pytest.mark.parametrize(("make_optimizer", "why"), [(frozen, "frozen"), (dense_group, "density=")])
def test_layer_that_is_dense_here_is_refused_with_the_reason(make_optimizer, why):
    other, model = make(), make()
    its = wrap(other)
    train(other, its, 7)
    message = refused(make_optimizer(model), model, its.state_dict(), r"fc1\.weight")
    assert why in message
    assert "another model" not in message


def test_frozen_layer_loads_if_it_is_frozen_after_the_optimizer_is_made():
    other, model = make(), make()
    its = wrap(other)
    train(other, its, 7)
    optimizer = wrap(model)
    model.fc1.weight.requires_grad_(False)
    optimizer.load_state_dict(its.state_dict())
    assert torch.equal(optimizer.masks["fc1.weight"], its.masks["fc1.weight"])


def test_other_param_groups_are_refused_by_their_lengths():
    other, model = make(), make()
    its = wrap(other)
    train(other, its, 7)
    decay = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim <= 1]
    inner = torch.optim.AdamW([{"params": decay}, {"params": rest, "weight_decay": 0.0}])
    optimizer = SparseOptimizer(inner, model, **SETTINGS)
    message = refused(optimizer, model, its.state_dict(), "the checkpoint has 1 param groups")
    assert f"has 2, with {len(decay)}, {len(rest)}" in message


@pytest.mark.parametrize("lost", ["schedule", "generator", "layers", "usage"])
def test_incomplete_checkpoint_is_refused_by_what_it_lacks(lost, state):
    other, model = make(), make(seed=3)
    its = wrap(other, state=state)
    train(other, its, 7)
    saved = its.state_dict()
    del saved["param_groups"][0]["sparseopt"][lost]
    optimizer = wrap(model, state=state)
    train(model, optimizer, 3)
    refused(optimizer, model, saved, rf"can't be read .*{lost}")


def test_plain_optimizers_checkpoint_is_refused():
    """The checkpoint has no masks, and training must not silently continue dense."""
    other, model = make(), make()
    plain = build("AdamW", other.parameters())
    train(other, plain, 3)
    optimizer = wrap(model)
    refused(optimizer, model, plain.state_dict(), "(?i)mask|sparse|plain")


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"density": 0.4}, "density is used"), ({"total_steps": 80}, "schedule is used")],
)
def test_warning_that_is_an_error_changes_nothing(settings, words, state):
    other, model = make(), make(seed=3)
    its = wrap(other, state=state)
    train(other, its, 7)
    optimizer = wrap(model, state=state, **settings)
    train(model, optimizer, 3)
    before = snapshot(optimizer, model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match=words):
            optimizer.load_state_dict(its.state_dict())
    assert_unchanged(before, snapshot(optimizer, model))
    train(model, optimizer, 3, start=3)
    assert_dropped_are_fresh(optimizer)


@pytest.mark.parametrize(("theirs", "mine"), [("SGD", "AdamW"), ("AdamW", "SGD")])
def test_another_inner_optimizer_is_refused_and_both_are_named(theirs, mine):
    other = make()
    its = wrap(other, name=theirs)
    train(other, its, 7)
    model = make()
    optimizer = wrap(model, name=mine)
    train(model, optimizer, 3)
    message = refused(optimizer, model, its.state_dict(), theirs)
    assert mine in message
