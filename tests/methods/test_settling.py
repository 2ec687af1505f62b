"""Methods whose density falls reach their target in spite of skipped updates and new layers."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn

from sparseopt import MEST, GraNet, Move, Pruning
from tests.support import wrapping
from tests.support.nets import make
from tests.support.training import train

METHODS = [Pruning(), Pruning(scope="layer"), GraNet(), MEST(), MEST(grow="gradient")]
T_END = 30


wrap = partial(wrapping.wrap, density=0.1, delta_t=20)


def live(optimizer):
    return sum(layer.live for layer in optimizer.layers)


def target(optimizer):
    return sum(layer.target for layer in optimizer.layers)


def assert_trains_on(model, optimizer):
    """Updates are over: weights move again, masks don't."""
    updates, masks = len(optimizer.history), optimizer.masks
    before = model.fc2.weight.detach().clone()
    train(model, optimizer, 3, start=optimizer.steps)
    assert len(optimizer.history) == updates
    assert all(torch.equal(mask, masks[name]) for name, mask in optimizer.masks.items())
    assert not torch.equal(model.fc2.weight, before)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_last_update_that_was_skipped_is_made_up_for(method):
    model = make()
    optimizer = wrap(model, method=method)
    train(model, optimizer, T_END - 1)
    poison = model.fc1.bias.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.warns(UserWarning, match="not finite"):
        train(model, optimizer, 1, start=T_END - 1)
    poison.remove()
    assert optimizer.history[-1].skipped
    assert live(optimizer) > target(optimizer)
    assert optimizer.is_update_step
    train(model, optimizer, 1, start=T_END)
    assert live(optimizer) == target(optimizer)
    last = optimizer.history[-1]
    assert (last.step, last.grown, last.fraction, last.skipped) == (T_END + 1, 0, 0.0, False)
    assert_trains_on(model, optimizer)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_horizon_that_is_moved_before_the_present_is_made_up_for(method):
    model = make()
    optimizer = wrap(model, method=method, total_steps=1000)
    train(model, optimizer, 25)
    optimizer.set_horizon(30)
    assert live(optimizer) > target(optimizer)
    train(model, optimizer, 1, start=25)
    assert live(optimizer) == target(optimizer)
    assert_trains_on(model, optimizer)


@pytest.mark.parametrize("method", [Pruning(), GraNet()], ids=repr)
def test_layer_that_is_added_after_the_end_comes_down_too(method):
    model = make()
    optimizer = wrap(model, method=method)
    train(model, optimizer, 35)
    assert live(optimizer) == target(optimizer)
    model.more = nn.Linear(20, 20, bias=False)
    optimizer.add_param_group({"params": model.more.parameters()})
    assert optimizer.layers[-1].target == 40
    assert live(optimizer) > target(optimizer)
    train(model, optimizer, 1, start=35)
    assert live(optimizer) == target(optimizer)


@pytest.mark.parametrize("total_steps", [40, 41, 67])
def test_granet_counts_layers_that_are_unused_at_the_last_update(total_steps):
    model = make()
    optimizer = wrap(model, method=GraNet(), total_steps=total_steps, delta_t=7)
    for t in range(1, total_steps + 1):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(t))
        if t > total_steps // 2:
            model.conv2.weight.grad = None
        optimizer.step()
    assert live(optimizer) == target(optimizer)


def test_layer_without_a_gradient_does_not_hold_up_training():
    """MEST drops by gradient, so a frozen layer does not move; the other layers do."""
    model = make()
    optimizer = wrap(model, method=MEST(gradient_weight=0.5))
    train(model, optimizer, 25)
    model.conv2.weight.requires_grad_(False)
    train(model, optimizer, 10, start=25)
    by_name = {layer.name: layer for layer in optimizer.layers}
    assert by_name["conv2.weight"].live > by_name["conv2.weight"].target
    assert all(
        layer.live == layer.target for name, layer in by_name.items() if name != "conv2.weight"
    )
    assert_trains_on(model, optimizer)


def train_with_unused_layer(model, optimizer, steps, *, set_to_none):
    """Steps of random gradients, but `conv2` has no gradient, or a gradient of zeros."""
    for _ in range(steps):
        t = optimizer.steps + 1
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(t))
        zeros = torch.zeros_like(model.conv2.weight)
        model.conv2.weight.grad = None if set_to_none else zeros
        optimizer.step()


@pytest.mark.parametrize(
    ("method", "set_to_none"),
    [
        (MEST(), True),
        (MEST(), False),
        (MEST(grow="gradient"), True),
        (MEST(grow="gradient"), False),
        (MEST(gradient_weight=0.5, grow="gradient"), False),
    ],
    ids=repr,
)
def test_layer_that_becomes_unused_comes_down_with_the_others(method, set_to_none):
    model = make()
    optimizer = wrap(model, method=method)
    train(model, optimizer, 25)
    assert live(optimizer) > target(optimizer)
    train_with_unused_layer(model, optimizer, 5, set_to_none=set_to_none)
    assert [layer.live for layer in optimizer.layers] == [
        layer.target for layer in optimizer.layers
    ]
    assert optimizer.history[-1].step == T_END
    bias = model.fc2.bias.detach().clone()
    train_with_unused_layer(model, optimizer, 1, set_to_none=set_to_none)
    assert len(optimizer.history) == 2
    assert not torch.equal(model.fc2.bias, bias)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("bound", ["soft", "hard"])
def test_layer_without_a_gradient_is_left_out_while_weights_grow(bound, set_to_none):
    """A frozen layer would lose trained weights, and grow weights that can't train."""
    model = make()
    optimizer = wrap(model, method=MEST(grow="gradient", bound=bound), delta_t=5)
    train_with_unused_layer(model, optimizer, 4, set_to_none=set_to_none)
    before = optimizer.masks
    train_with_unused_layer(model, optimizer, 1, set_to_none=set_to_none)
    moved = [name for name, mask in optimizer.masks.items() if not mask.equal(before[name])]
    assert moved == ["conv1.weight", "fc1.weight", "fc2.weight"]


def test_update_after_the_end_that_moves_nothing_is_not_repeated():
    @dataclass(frozen=True)
    class Reluctant(MEST):
        """Announces that it reaches the target, but drops nothing at the end."""

        def moves(self, layers, update):
            if update.fraction == 0.0:
                return [Move(0, 0) for _ in layers]
            return super().moves(layers, update)

    model = make()
    optimizer = wrap(model, method=Reluctant())
    train(model, optimizer, T_END + 1)
    assert live(optimizer) > target(optimizer)
    assert [record.step for record in optimizer.history] == [20, T_END, T_END + 1]
    assert_trains_on(model, optimizer)


@pytest.mark.parametrize("method", ["static", "set", "rigl", "snfs", "rigl-sg"])
def test_other_methods_have_nothing_to_settle(method):
    model = make()
    optimizer = wrap(model, method=method)
    train(model, optimizer, 40)
    assert all(record.step < T_END for record in optimizer.history)
