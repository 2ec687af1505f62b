"""Param groups: their own options and densities, added and frozen in mid-training."""

import pytest
import torch

from sparseopt import SparseOptimizer
from tests.support.catalogue import build
from tests.support.looking import (
    assert_dropped_are_fresh,
    assert_same_weights,
    assert_unchanged,
    snapshot,
)
from tests.support.nets import loss_of, make
from tests.support.training import backward, train, train_step
from tests.support.wrapping import SETTINGS, wrap


def test_param_groups_keep_their_own_options(state):
    model, own_model = make(), make()

    def groups(net):
        decay = [p for p in net.parameters() if p.ndim > 1]
        rest = [p for p in net.parameters() if p.ndim == 1]
        return [
            {"params": decay, "weight_decay": 0.1, "lr": 0.02},
            {"params": rest, "weight_decay": 0.0},
        ]

    inner = torch.optim.SGD(groups(model), lr=0.05, momentum=0.9)
    optimizer = SparseOptimizer(inner, model, state=state, **{**SETTINGS, "method": "static"})
    plain = torch.optim.SGD(groups(own_model), lr=0.05, momentum=0.9)
    masks = {name: mask.clone() for name, mask in optimizer.masks.items()}

    def put_masks_on():
        for name, p in own_model.named_parameters():
            if name in masks:
                p.data = torch.where(masks[name], p.data, 0.0)
                if p.grad is not None:
                    p.grad = torch.where(masks[name], p.grad, 0.0)

    put_masks_on()
    for t in range(1, 16):
        train_step(model, optimizer, t)
        backward(own_model, t)
        put_masks_on()
        plain.step()
    assert_same_weights(model, own_model)


def test_density_of_a_param_group_overrides_the_default():
    model = make()
    inner = torch.optim.SGD(
        [
            {"params": model.conv1.parameters()},
            {"params": model.conv2.parameters(), "density": False},
            {"params": model.norm.parameters()},
            {"params": model.fc1.parameters(), "density": 0.5},
            {"params": model.fc2.parameters()},
        ],
        lr=0.05,
    )
    optimizer = SparseOptimizer(inner, model, init="uniform", **SETTINGS)
    by_name = {layer.name: layer for layer in optimizer.layers}
    assert "conv2.weight" not in by_name or by_name["conv2.weight"].density == 1
    assert by_name["fc1.weight"].live == round(0.5 * by_name["fc1.weight"].numel)
    assert by_name["fc2.weight"].live == round(0.2 * by_name["fc2.weight"].numel)
    train(model, optimizer, 11)
    assert by_name["fc1.weight"].live == round(0.5 * by_name["fc1.weight"].numel)
    assert model.conv2.weight.ne(0).all()


def test_dense_param_group_trains_like_a_dense_one():
    """Gradients of a `density=False` group are never masked, and its state is always dense."""
    model = make()
    inner = torch.optim.AdamW(
        [
            {"params": [*model.conv1.parameters(), *model.norm.parameters()]},
            {"params": model.conv2.parameters(), "density": False},
            {"params": [*model.fc1.parameters(), *model.fc2.parameters()]},
        ],
        lr=0.01,
    )
    optimizer = SparseOptimizer(inner, model, **SETTINGS)
    train(model, optimizer, 6)
    assert model.conv2.weight.grad.ne(0).float().mean() > 0.5
    assert optimizer.state[model.conv2.weight]["exp_avg"].shape == model.conv2.weight.shape


@pytest.mark.parametrize("density", [0.0, -0.5, 1.5, float("nan"), True])
def test_bad_density_of_a_param_group_is_refused(density):
    model = make()
    inner = torch.optim.SGD([{"params": list(model.parameters()), "density": density}], lr=0.1)
    with pytest.raises((ValueError, TypeError), match="density"):
        SparseOptimizer(inner, model, **SETTINGS)


def test_add_param_group_in_mid_training(state):
    """Unfreezing a head: the new group trains, and existing masks do not change."""
    model = make()
    head = [model.fc2.weight, model.fc2.bias]
    rest = [p for p in model.parameters() if all(p is not h for h in head)]
    for p in head:
        p.requires_grad_(False)
    inner = torch.optim.SGD(rest, lr=0.05, momentum=0.9)
    optimizer = SparseOptimizer(inner, model, state=state, **SETTINGS)
    train(model, optimizer, 6)
    masks = {name: mask.clone() for name, mask in optimizer.masks.items()}
    frozen = model.fc2.weight.detach().clone()

    for p in head:
        p.requires_grad_(True)
    optimizer.add_param_group({"params": head, "lr": 0.01, "density": False})
    assert len(inner.param_groups) == 2
    assert optimizer.param_groups[1]["momentum"] == 0.9
    for name, mask in masks.items():
        assert torch.equal(optimizer.masks[name], mask)
    train(model, optimizer, 6, start=6)
    assert not torch.equal(model.fc2.weight, frozen)
    assert inner.state[model.fc2.weight]["momentum_buffer"].shape == model.fc2.weight.shape
    assert_dropped_are_fresh(optimizer)


def test_sparse_layer_added_in_mid_training_is_made_sparse():
    model = make()
    model.fc1.weight.requires_grad_(False)
    rest = [p for p in model.parameters() if p is not model.fc1.weight]
    inner = torch.optim.AdamW(rest, lr=0.01)
    optimizer = SparseOptimizer(inner, model, init="uniform", **SETTINGS)
    train(model, optimizer, 6)
    assert is_all_live(model.fc1.weight)
    model.fc1.weight.requires_grad_(True)
    optimizer.add_param_group({"params": [model.fc1.weight], "density": 0.25})
    layer = next(layer for layer in optimizer.layers if layer.weight is model.fc1.weight)
    assert layer.name == "fc1.weight"
    assert layer.live == round(0.25 * layer.numel) == int(model.fc1.weight.ne(0).sum())
    train(model, optimizer, 12, start=6)
    assert layer.live == round(0.25 * layer.numel)
    assert_dropped_are_fresh(optimizer)


def is_all_live(weight):
    return bool(weight.ne(0).all())


def test_freezing_a_layer_in_mid_training_leaves_it_as_it_is():
    model = make()
    optimizer = wrap(model)
    train(model, optimizer, 4)
    optimizer.zero_grad()
    model.fc1.weight.requires_grad_(False)
    weight, mask = model.fc1.weight.detach().clone(), optimizer.masks["fc1.weight"].clone()
    for t in range(5, 12):
        optimizer.zero_grad()
        loss_of(model, t).backward()
        optimizer.step()
    assert torch.equal(model.fc1.weight, weight)
    assert torch.equal(optimizer.masks["fc1.weight"], mask)
    assert len(optimizer.history) == 2


def test_unfreezing_a_layer_that_was_frozen_in_mid_training_goes_on_under_its_mask(state):
    model = make()
    optimizer = wrap(model, state=state)
    train(model, optimizer, 3)
    optimizer.zero_grad()
    model.fc1.weight.requires_grad_(False)
    train(model, optimizer, 5, start=3)
    frozen, mask = model.fc1.weight.detach().clone(), optimizer.masks["fc1.weight"].clone()
    model.fc1.weight.requires_grad_(True)
    train(model, optimizer, 1, start=8)
    assert not torch.equal(model.fc1.weight, frozen)
    assert torch.equal(model.fc1.weight.grad.ne(0) & ~mask, torch.zeros_like(mask))
    assert optimizer.is_update_step
    train(model, optimizer, 1, start=9)
    assert not torch.equal(optimizer.masks["fc1.weight"], mask)
    assert_dropped_are_fresh(optimizer)


def test_layer_that_was_frozen_when_wrapped_trains_dense_once_it_is_unfrozen(state):
    """It was in a group all the time, so its density is not chosen again."""
    model, own_model = make(), make()
    for net in (model, own_model):
        net.fc1.weight.requires_grad_(False)
    optimizer = wrap(model, "AdamW", method="static", state=state)
    assert "fc1.weight" not in optimizer.masks
    plain = build("AdamW", own_model.parameters())
    masks = {name: mask.clone() for name, mask in optimizer.masks.items()}

    def put_masks_on():
        with torch.no_grad():
            for name, mask in masks.items():
                own_model.get_parameter(name).masked_fill_(~mask, 0.0)

    put_masks_on()
    for t in range(1, 13):
        if t == 6:
            for net in (model, own_model):
                net.fc1.weight.requires_grad_(True)
        train_step(model, optimizer, t)
        backward(own_model, t)
        for name, mask in masks.items():
            own_model.get_parameter(name).grad.masked_fill_(~mask, 0.0)
        plain.step()
        put_masks_on()
    assert_same_weights(model, own_model)
    assert is_all_live(model.fc1.weight)
    assert optimizer.state[model.fc1.weight]["exp_avg"].shape == model.fc1.weight.shape


def test_parameter_that_is_in_a_group_already_is_refused_and_nothing_changes(state):
    """Unfreezing needs no group: torch raises its error, and masks do not change."""
    model = make()
    optimizer = wrap(model, state=state)
    train(model, optimizer, 3)
    before = snapshot(optimizer, model)
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [model.fc1.weight]})
    assert len(optimizer.param_groups) == 1
    assert_unchanged(before, snapshot(optimizer, model))


@pytest.mark.parametrize(
    ("parameter", "options", "error"),
    [
        (torch.nn.Parameter(torch.ones(4, 4, dtype=torch.complex64)), {}, TypeError),
        (torch.nn.Parameter(torch.ones(4, 4)), {"density": 1.5}, ValueError),
        (torch.nn.Parameter(torch.ones(4, 4)), {"density": "half"}, TypeError),
    ],
    ids=["complex", "density above 1", "density in words"],
)
def test_group_that_cannot_be_sparse_is_refused_and_nothing_is_added(parameter, options, error):
    model = torch.nn.ParameterList(make().parameters())
    optimizer = SparseOptimizer(build("SGD", model.parameters()), **SETTINGS)
    before = snapshot(optimizer, model)
    with pytest.raises(error):
        optimizer.add_param_group({"params": [parameter], **options})
    assert len(optimizer.param_groups) == 1
    assert_unchanged(before, snapshot(optimizer, model))
    assert not parameter._post_accumulate_grad_hooks
    assert parameter.detach().eq(1).all()
