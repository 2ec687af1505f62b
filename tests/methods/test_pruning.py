"""Gradual magnitude pruning: the density falls along a cubic."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from sparseopt import Pruning, SparseOptimizer
from tests.support import wrapping
from tests.support.looking import assert_dropped_are_fresh, logical
from tests.support.nets import make
from tests.support.training import train

wrap = partial(wrapping.wrap, method="pruning", density=0.1, total_steps=100)


def sgd_of(tensors, **settings):
    """Layers of given weights, pruned at the only update there is: the last."""
    model = nn.ModuleList([nn.Linear(len(t), 1, bias=False) for t in tensors])
    with torch.no_grad():
        for layer, values in zip(model, tensors, strict=True):
            layer.weight.copy_(torch.tensor([values]))
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.0),
        model,
        method=Pruning(**settings),
        init={f"{i}.weight": 0.5 for i in range(len(tensors))},
        delta_t=100,
        total_steps=4,
    )
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    return [layer.mask.flatten().int().tolist() for layer in optimizer.layers]


@pytest.mark.parametrize("mask", ["random", "magnitude"])
def test_every_layer_starts_full(mask):
    model, untouched = make(), make()
    optimizer = wrap(model, mask=mask)
    assert optimizer.density == 1.0
    for mine, theirs in zip(model.parameters(), untouched.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert not optimizer.is_update_step


def test_updates_fall_on_multiples_from_the_start_to_the_end_and_on_the_end_itself():
    optimizer = wrap(make(), total_steps=97, delta_t=7)
    train_by_noise(optimizer, 97)
    t_end = int(0.75 * 97)
    assert t_end % 7 != 0
    expected = [*range(7, t_end, 7), t_end]
    assert [record.step for record in optimizer.history] == expected


def train_by_noise(optimizer, steps):
    for _ in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn_like(p)
        optimizer.step()


def test_start_is_relative_to_the_horizon():
    """Step 700 of 88,000, as the report has it."""
    optimizer = wrap(make(), total_steps=1000, delta_t=1)
    train_by_noise(optimizer, 12)
    steps = [record.step for record in optimizer.history]
    assert steps == list(range(8, 13))
    assert int(0.008 * 88_000) == 704


def test_density_follows_the_cubic_curve():
    model = make()
    optimizer = wrap(model, init="er", total_steps=200, delta_t=10)
    total = sum(layer.numel for layer in optimizer.layers)
    final = 1 - sum(layer.target for layer in optimizer.layers) / total
    train_by_noise(optimizer, 200)
    t_start, t_end = int(0.008 * 200), 150
    assert len(optimizer.history) == 15
    for record in optimizer.history:
        progress = (record.step - t_start) / (t_end - t_start)
        density = 1 - final * (1 - (1 - progress) ** 3)
        assert record.density == pytest.approx(round(density * total) / total)
        assert record.grown == 0
    assert optimizer.history[-1].step == t_end


@pytest.mark.parametrize("density", [0.05, 0.1, 0.13, 0.5])
@pytest.mark.parametrize("total_steps", [60, 61, 97])
def test_final_density_is_exact(total_steps, density):
    """A schedule that is off by one ends at .8946 for a target of .9."""
    model = make()
    optimizer = wrap(model, density=density, total_steps=total_steps, delta_t=7)
    train(model, optimizer, total_steps)
    targets = sum(layer.target for layer in optimizer.layers)
    assert sum(layer.live for layer in optimizer.layers) == targets
    total = sum(layer.numel for layer in optimizer.layers)
    assert abs(targets - density * total) <= len(optimizer.layers)
    assert_dropped_are_fresh(optimizer)


def test_scope_layer_brings_every_layer_to_its_own_target():
    model = make()
    optimizer = wrap(model, method=Pruning(scope="layer"), density=0.2)
    train(model, optimizer, 100)
    for layer in optimizer.layers:
        assert layer.live == layer.target == int(layer.mask.sum())


def test_scope_layer_follows_a_cubic_from_the_initial_density_of_each_layer():
    model = make()
    optimizer = wrap(
        model, method=Pruning(scope="layer", initial=0.5, start=0.0), density=0.1, delta_t=15
    )
    first = [layer.density for layer in optimizer.layers]
    final = [layer.target / layer.numel for layer in optimizer.layers]
    assert max(first) > 0.8
    assert min(first) < 0.45
    for t in (15, 30, 45, 60):
        train(model, optimizer, 15, start=t - 15)
        for layer, start, end in zip(optimizer.layers, first, final, strict=True):
            expected = end + (start - end) * (1 - t / 75) ** 3
            assert layer.live == pytest.approx(expected * layer.numel, abs=0.5)


def test_layers_that_the_distribution_makes_dense_stay_dense():
    model = make()
    optimizer = wrap(model, init="uniform", density=0.1)
    train(model, optimizer, 100)
    by_name = {layer.name: layer for layer in optimizer.layers}
    assert by_name["conv1.weight"].density == 1.0
    assert model.conv1.weight.ne(0).all()
    rest = [layer for layer in optimizer.layers if layer.name != "conv1.weight"]
    assert sum(layer.live for layer in rest) == sum(layer.target for layer in rest)


def test_dropped_weights_never_return():
    model = make()
    optimizer = wrap(model, density=0.1)
    ever_dropped = {name: torch.zeros_like(mask) for name, mask in optimizer.masks.items()}

    def check(_):
        for name, mask in optimizer.masks.items():
            assert not (mask & ever_dropped[name]).any()
            ever_dropped[name] |= ~mask

    train(model, optimizer, 100, after=check)
    assert optimizer.density < 0.2


def test_layers_compete_globally():
    assert sgd_of([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]) == [[0, 0, 0, 1], [0, 1, 1, 1]]


def test_layers_do_not_compete_under_scope_layer():
    masks = sgd_of([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]], scope="layer")
    assert masks == [[0, 0, 1, 1], [0, 0, 1, 1]]


def test_ties_drop_the_earlier_layer_and_then_the_lower_index_first():
    assert sgd_of([[9.0, 1.0, -1.0, 9.0], [1.0, 1.0, 9.0, 1.0]]) == [[1, 0, 0, 1], [0, 0, 1, 1]]


def test_layers_are_never_emptied():
    """The first layer would lose all weights; its largest stays, and another weight drops."""
    masks = sgd_of([[0.1, 0.3, 0.2, 0.0], [5.0, 6.0, 7.0, 8.0]])
    assert masks == [[0, 1, 0, 0], [0, 1, 1, 1]]


def test_weights_that_go_are_the_smallest_of_all():
    model = make()
    optimizer = wrap(model, init="er", density=0.3)
    magnitudes = {}

    def note(_):
        for layer in optimizer.layers:
            magnitudes[layer.name] = abs(logical(layer.weight))

    note(0)
    moved = 0
    for t in range(1, 76):
        updating = optimizer.is_update_step
        old = {name: logical(mask) for name, mask in optimizer.masks.items()}
        train(model, optimizer, 1, start=t - 1)
        if updating:
            lost, kept = [], []
            for name, mask in optimizer.masks.items():
                now = logical(mask)
                lost += magnitudes[name][old[name] & ~now].tolist()
                kept += magnitudes[name][now].tolist()
            assert max(lost, default=0.0) <= min(kept)
            moved += bool(lost)
        note(t)
    assert moved >= 10


def test_update_replaces_the_gradient_step():
    model = make()
    optimizer = wrap(model)
    train(model, optimizer, 4)
    assert optimizer.is_update_step
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, optimizer, 1, start=4)
    for name, p in model.named_parameters():
        expected = before[name]
        if name in optimizer.masks:
            expected = torch.where(optimizer.masks[name], expected, 0.0)
        assert torch.equal(p, expected), name


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_layer_that_is_unused_at_updates_is_pruned_all_the_same(scope):
    model = make()
    optimizer = wrap(model, method=Pruning(scope=scope))
    targets = {layer.name: layer.target for layer in optimizer.layers}
    for _ in range(100):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        if optimizer.is_update_step:
            model.fc1.weight.grad = None
        optimizer.step()
    live = {layer.name: layer.live for layer in optimizer.layers}
    assert sum(live.values()) == sum(targets.values())
    assert scope == "global" or live == targets


def test_t_end_without_total_steps_puts_the_start_in_the_same_place():
    optimizer = wrap(make(), total_steps=None, t_end=750, delta_t=1)
    train_by_noise(optimizer, 10)
    assert optimizer.history[0].step == math.floor(0.008 * 750 / 0.75) == 8
