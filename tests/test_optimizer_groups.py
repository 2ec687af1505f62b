"""Param groups: their own options and densities, added and frozen in mid-training."""

import pytest
import torch

from sparseopt import SparseOptimizer
from tests.support.catalogue import build
from tests.support.looking import assert_dropped_are_fresh, assert_same_weights
from tests.support.nets import loss_of, make
from tests.support.training import backward, train, train_step

SETTINGS = {"density": 0.2, "total_steps": 40, "delta_t": 5, "seed": 3}


def wrap(model, name="SGD", **changes):
    return SparseOptimizer(build(name, model.parameters()), model, **{**SETTINGS, **changes})


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


def test_a_dense_param_group_trains_like_a_dense_one():
    """Gradients of a `density=False` group are never masked and its state never compact."""
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
def test_a_bad_density_of_a_param_group_is_refused(density):
    model = make()
    inner = torch.optim.SGD([{"params": list(model.parameters()), "density": density}], lr=0.1)
    with pytest.raises((ValueError, TypeError), match="density"):
        SparseOptimizer(inner, model, **SETTINGS)


def test_add_param_group_in_mid_training(state):
    """Unfreezing a head: the new group trains, the masks that were there stay as they were."""
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


def test_a_sparse_layer_added_in_mid_training_is_made_sparse():
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
