"""Two wrappers over the same weights, heads that are replaced, and weights that left the model."""

import copy

import pytest
import torch
from torch import nn

from sparseopt import SparseOptimizer
from tests.support.catalogue import build
from tests.support.looking import assert_dropped_are_fresh, assert_same_weights
from tests.support.nets import loss_of, make
from tests.support.training import named, train, train_step

SETTINGS = {"density": 0.2, "total_steps": 40, "delta_t": 5, "seed": 3}
TAKEN_OVER = r"no longer masks 'conv1\.weight': another SparseOptimizer, made later"


def wrap(model, name="AdamW", **changes):
    return SparseOptimizer(build(name, model.parameters()), model, **{**SETTINGS, **changes})


@pytest.mark.parametrize("method", ["static", "rigl"])
def test_second_wrapper_takes_over_while_the_first_is_referenced(method, state):
    """Equal to the same two phases with ``detach()`` between them."""
    models = []
    for detaches in (False, True):
        model = make()
        first = wrap(model, method=method, state=state)
        scheduler = torch.optim.lr_scheduler.StepLR(first, 3)
        train(model, first, 6)
        if detaches:
            first.detach()
        second = wrap(model, "SGD", method=method, mask="nonzero", state=state)
        train(model, second, 12, start=6)
        assert_dropped_are_fresh(second)
        scheduler.step()
        models.append(model)
    assert_same_weights(*models)


def test_step_of_the_first_wrapper_raises_and_changes_nothing(state):
    model = make()
    first = wrap(model, state=state)
    train(model, first, 3)
    second = wrap(model, mask="nonzero", state=state)
    before = named(model)
    loss_of(model, 4).backward()
    for call in (first.step, lambda: first.load_state_dict(first.state_dict())):
        with pytest.raises(RuntimeError, match=TAKEN_OVER):
            call()
    with pytest.raises(RuntimeError, match=TAKEN_OVER):
        first.add_param_group({"params": [nn.Parameter(torch.ones(8, 8))]})
    for name, value in named(model).items():
        assert torch.equal(value, before[name])
    second.step()
    assert first.steps == 3


def test_inner_optimizer_of_the_first_wrapper_has_dense_state_as_after_detach():
    model = make()
    first = wrap(model, state="live")
    train(model, first, 3)
    wrap(model, mask="nonzero")
    for layer in first.layers:
        assert first.inner.state[layer.weight]["exp_avg"].shape == layer.weight.shape


def test_wrapper_is_detached_by_one_common_weight(state):
    """`step()` raises if one weight was taken over: it must not train without its mask."""
    model = make()
    first = wrap(model, state=state)
    train(model, first, 2)
    head = torch.optim.SGD(model.fc2.parameters(), lr=0.1)
    second = SparseOptimizer(head, model, mask="nonzero", **{**SETTINGS, "method": "static"})
    with pytest.raises(RuntimeError, match=r"no longer masks 'fc2\.weight'"):
        first.step()
    train(model, second, 3)
    assert_dropped_are_fresh(second)


def test_group_that_is_added_is_taken_over_too(state):
    model = make()
    heads = list(model.fc2.parameters())
    first = SparseOptimizer(torch.optim.SGD(heads, lr=0.1), model, **SETTINGS, state=state)
    others = [p for p in model.parameters() if not any(p is head for head in heads)]
    second = SparseOptimizer(
        torch.optim.SGD(others, lr=0.1), model, mask="nonzero", state=state, **SETTINGS
    )
    first.zero_grad()
    train_step(model, first, 1)
    second.add_param_group({"params": heads})
    with pytest.raises(RuntimeError, match=r"no longer masks 'fc2\.weight'"):
        first.step()
    train(model, second, 6)
    assert_dropped_are_fresh(second)


def test_optimizers_of_different_weights_leave_each_other_alone(state):
    model = make()
    parts = [model.conv1, model.conv2], [model.fc1, model.fc2]
    pair = [
        SparseOptimizer(
            torch.optim.SGD([p for m in part for p in m.parameters()], lr=0.1),
            model,
            state=state,
            **SETTINGS,
        )
        for part in parts
    ]
    for t in range(12):
        for optimizer in pair:
            optimizer.zero_grad()
        loss_of(model, t).backward()
        for optimizer in pair:
            optimizer.step()
    for optimizer in pair:
        assert_dropped_are_fresh(optimizer)


def test_copy_belongs_to_the_copied_model():
    model = make()
    optimizer = wrap(model)
    train(model, optimizer, 2)
    other_model, other = copy.deepcopy((model, optimizer))
    wrap(other_model, mask="nonzero")
    train(model, optimizer, 2, start=2)
    with pytest.raises(RuntimeError, match=TAKEN_OVER):
        other.step()


def test_rounds_of_iterative_pruning_with_every_optimizer_kept():
    """Magnitude pruning with rewinding, one optimizer a round, as after several ``fit()``s."""
    model = make()
    start = copy.deepcopy(model.state_dict())
    kept = []
    for density in (0.5, 0.25, 0.1):
        mask = "magnitude" if kept else "random"
        optimizer = wrap(model, method="static", density=density, mask=mask)
        kept.append((optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 3)))
        train(model, optimizer, 4)
        masks = {name: value.clone() for name, value in optimizer.masks.items()}
        assert optimizer.density == pytest.approx(density, abs=0.01)
        assert_dropped_are_fresh(optimizer)
        model.load_state_dict(start)
        with torch.no_grad():
            for name, value in masks.items():
                model.get_parameter(name).mul_(value)


def three():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 3))


def steps_of(model, optimizer, steps):
    for step in range(steps):
        optimizer.zero_grad()
        inputs = torch.randn(8, 10, generator=torch.Generator().manual_seed(step))
        model(inputs).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("method", ["static", "rigl", "snfs"])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_name_of_a_replaced_head_is_free_again(name, method, state):
    model = three()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters()}]
    settings = {**SETTINGS, "method": method, "init": {}, "state": state}
    optimizer = SparseOptimizer(build(name, groups), model, **settings)
    steps_of(model, optimizer, 6)
    body = optimizer.masks["0.weight"].clone()
    model[2] = nn.Linear(32, 7)
    del optimizer.param_groups[1]
    optimizer.add_param_group({"params": model[2].parameters()})
    assert [layer.weight for layer in optimizer.layers] == [model[0].weight, model[2].weight]
    assert torch.equal(optimizer.masks["0.weight"], body)
    steps_of(model, optimizer, 12)
    assert_dropped_are_fresh(optimizer)
    assert optimizer.masks["2.weight"].shape == (7, 32)
    assert optimizer.flops().steps == 18

    other = three()
    other[2] = nn.Linear(32, 7)
    groups = [{"params": other[0].parameters()}, {"params": other[2].parameters()}]
    resumed = SparseOptimizer(build(name, groups), other, **settings)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps_of(model, optimizer, 7)
    steps_of(other, resumed, 7)
    assert_same_weights(model, other)


def test_name_is_free_again_without_a_model_too():
    model = three()
    groups = [
        {"params": list(model[0].named_parameters("0"))},
        {"params": list(model[2].named_parameters("2"))},
    ]
    optimizer = SparseOptimizer(torch.optim.SGD(groups, lr=0.1), **SETTINGS)
    steps_of(model, optimizer, 3)
    model[2] = nn.Linear(32, 7)
    del optimizer.param_groups[1]
    optimizer.add_param_group({"params": list(model[2].named_parameters("2"))})
    assert {name: tuple(mask.shape) for name, mask in optimizer.masks.items()} == {
        "0.weight": (32, 10),
        "2.weight": (7, 32),
    }
    steps_of(model, optimizer, 9)
    assert_dropped_are_fresh(optimizer)


def test_refused_group_leaves_the_layers_unchanged():
    model = three()
    groups = [{"params": model[0].parameters()}, {"params": model[2].parameters()}]
    optimizer = SparseOptimizer(torch.optim.SGD(groups, lr=0.1), model, **SETTINGS)
    old = model[2].weight
    model[2] = nn.Linear(32, 7)
    del optimizer.param_groups[1]
    with pytest.raises(ValueError, match="density"):
        optimizer.add_param_group({"params": model[2].parameters(), "density": 2.0})
    assert [layer.weight for layer in optimizer.layers] == [model[0].weight, old]
    assert len(optimizer.param_groups) == 1


LEFT = r"weight of '0\.weight' .* no longer a parameter of the model"


@pytest.mark.parametrize("method", ["set", "rigl"])
def test_weights_that_left_the_model_are_named_once_at_an_update(method):
    """A structured pruner makes new parameters; the optimizer has the old ones."""
    model = three()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = SparseOptimizer(inner, model, **{**SETTINGS, "method": method})
    steps_of(model, optimizer, 3)
    model[0] = nn.Linear(10, 32)
    with pytest.warns(UserWarning, match=LEFT) as said:
        steps_of(model, optimizer, 9)
    assert len(said) == 1
    assert said[0].filename == __file__


@pytest.mark.parametrize("look", ["summary", "flops"])
def test_weights_that_left_the_model_are_named_by_summary_and_flops(look):
    model = three()
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = SparseOptimizer(inner, model, **{**SETTINGS, "method": "static"})
    steps_of(model, optimizer, 3)
    model[0].weight = nn.Parameter(torch.randn(32, 10))
    with pytest.warns(UserWarning, match=LEFT) as said:
        getattr(optimizer, look)()
    assert said[0].filename == __file__
