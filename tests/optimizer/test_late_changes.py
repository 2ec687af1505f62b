"""Late changes: groups, precisions, entries of state, and calls after detach() or a pickle."""

import copy
import pickle

import pytest
import torch
from torch import nn

from sparseopt import SparseOptimizer
from tests.support.catalogue import build
from tests.support.looking import (
    assert_dropped_are_fresh,
    assert_same_weights,
    assert_unchanged,
    snapshot,
)
from tests.support.nets import loss_of, make
from tests.support.training import train, train_step
from tests.support.wrapping import SETTINGS, wrap

POOLED = {"method": "static", "density": 0.3, "init": "uniform", "seed": 3}


@pytest.mark.parametrize("method", ["rigl", "snfs"])
def test_groups_added_later_have_their_own_names_without_a_model(method):
    first, second = make(), make(seed=1)
    inner = torch.optim.SGD(first.parameters(), lr=0.05)
    optimizer = SparseOptimizer(inner, method=method, **SETTINGS)
    optimizer.add_param_group({"params": list(second.parameters())})
    names = [layer.name for layer in optimizer.layers]
    assert len(names) == len(set(names)) == len(optimizer.masks) == 8
    for t in range(1, 12):
        optimizer.zero_grad()
        (loss_of(first, t) + loss_of(second, t)).backward()
        optimizer.step()
    assert_dropped_are_fresh(optimizer)
    for layer in optimizer.layers:
        assert torch.equal(optimizer.masks[layer.name], layer.mask)


def test_weight_that_takes_anothers_place_in_the_model_is_refused_by_name(state):
    model = make()
    optimizer = wrap(model, "AdamW", state=state)
    train(model, optimizer, 3)
    model.fc2 = torch.nn.Linear(16, 5)
    before = snapshot(optimizer, model)
    with pytest.raises(ValueError, match=r"'fc2\.weight'.*needs a new SparseOptimizer"):
        optimizer.add_param_group({"params": list(model.fc2.parameters())})
    assert_unchanged(before, snapshot(optimizer, model))


def test_unpickled_optimizer_does_not_guess_what_a_group_is():
    """The model decides what can be sparse, and it is not in the pickle."""
    model = make()
    optimizer = wrap(model)
    copied = pickle.loads(pickle.dumps(optimizer))
    with pytest.raises(RuntimeError, match="without its model"):
        copied.add_param_group({"params": [torch.nn.Parameter(torch.zeros(5, 5))]})
    assert len(copied.param_groups) == 1


def test_group_that_the_user_removed_is_named_and_detach_still_works(state):
    model = make()
    groups = [
        {"params": list(model.conv1.parameters()) + list(model.conv2.parameters())},
        {"params": list(model.fc1.parameters()) + list(model.fc2.parameters())},
    ]
    inner = torch.optim.AdamW(groups, lr=0.01)
    optimizer = SparseOptimizer(inner, model, state=state, **SETTINGS)
    train(model, optimizer, 3)
    optimizer.param_groups.pop(0)
    with pytest.raises(RuntimeError, match=r"'conv1\.weight' is no longer in any of"):
        optimizer.state_dict()
    optimizer.detach()
    for name, p in model.named_parameters():
        if name.startswith("fc"):
            assert inner.state[p]["exp_avg"].shape == p.shape


def test_state_dict_of_a_detached_optimizer_loads_into_a_sparse_one(state):
    model = make()
    optimizer = wrap(model, "AdamW", state=state)
    train(model, optimizer, 7)
    whole = copy.deepcopy(optimizer.state_dict())
    weights = copy.deepcopy(model.state_dict())
    optimizer.detach()
    runs = []
    for saved in (whole, optimizer.state_dict()):
        other = make(seed=1)
        resumed = wrap(other, "AdamW", state=state)
        other.load_state_dict(weights)
        resumed.load_state_dict(saved)
        train(other, resumed, 8, start=7)
        runs.append(other)
    assert_same_weights(*runs)


def test_detached_optimizer_refuses_groups_and_checkpoints():
    model = make()
    optimizer = wrap(model)
    saved = optimizer.state_dict()
    optimizer.detach()
    weight = torch.nn.Parameter(torch.ones(8, 8))
    with pytest.raises(RuntimeError, match="detached: add the group to its inner optimizer"):
        optimizer.add_param_group({"params": [weight]})
    with pytest.raises(RuntimeError, match="detached: load into its inner optimizer"):
        optimizer.load_state_dict(saved)
    assert weight.all()
    assert not weight._post_accumulate_grad_hooks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_layer_whose_precision_changes_continues_as_with_dense_state(dtype):
    """With SGD; torch's own AdamW does not take state of another precision."""
    weights = []
    for state in ("live", "masked"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
        optimizer = SparseOptimizer(build("SGD", model.parameters()), model, **POOLED, state=state)
        for step in range(6):
            if step == 3:
                model[1].to(dtype)
            for weight in model.parameters():
                noise = torch.Generator().manual_seed(step)
                weight.grad = torch.randn(weight.shape, generator=noise).to(weight.dtype)
            optimizer.step()
        weights.append([weight.detach().clone() for weight in model.parameters()])
    for live, masked in zip(*weights, strict=True):
        assert live.dtype == masked.dtype
        torch.testing.assert_close(live, masked)


class OneAfterTheOther(torch.optim.Optimizer):
    """Steps each parameter by ``move``."""

    def __init__(self, params, lr=0.01):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.move(p, group["lr"])


class FilledLate(OneAfterTheOther):
    """Creates an entry before it has values; an accumulator, like Adagrad's."""

    def move(self, p, lr):
        if p not in self.state:
            entry = {}
            self.state[p] = entry
            entry["sum"] = torch.full_like(p, 0.1)
        entry = self.state[p]
        entry["sum"].add_(p.grad.square())
        p.sub_(lr * p.grad / entry["sum"].sqrt())


@pytest.mark.parametrize("method", ["set", "rigl"])
def test_state_that_is_filled_late_starts_at_its_own_value(method):
    model = make()
    optimizer = SparseOptimizer(FilledLate(model.parameters()), model, method=method, **SETTINGS)
    for t in range(1, 30 + 1):
        train_step(model, optimizer, t)
        assert_dropped_are_fresh(optimizer, {"sum": 0.1})
    assert all(torch.isfinite(p).all() for p in model.parameters())


def three_alike():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(20, 20) for _ in range(3)))


def loss_of_three(model, t):
    inputs = torch.randn(16, 20, generator=torch.Generator().manual_seed(t))
    return (model(inputs) - inputs).square().mean()


def take_out_by_filter(optimizer, model):
    (group,) = optimizer.param_groups
    for parameter in model[0].parameters():
        parameter.requires_grad_(False)
    group["params"] = [parameter for parameter in group["params"] if parameter.requires_grad]


def take_out_the_group(optimizer, model):
    del optimizer.param_groups[0]


@pytest.mark.parametrize("take_out", [take_out_by_filter, take_out_the_group])
@pytest.mark.parametrize("method", ["set", "rigl", "granet"])
def test_removed_layer_does_not_disturb_layers_that_take_its_index(take_out, method, state):
    """Layers of one shape, so that another layer takes the index of a removed one."""
    model = three_alike()
    each = [{"params": list(layer.parameters())} for layer in model]
    inner = torch.optim.SGD(
        each if take_out is take_out_the_group else model.parameters(), lr=0.1, momentum=0.9
    )
    optimizer = SparseOptimizer(inner, model, method=method, init={}, state=state, **SETTINGS)
    for t in range(1, 4):
        optimizer.zero_grad()
        loss_of_three(model, t).backward()
        optimizer.step()
    take_out(optimizer, model)
    frozen = model[0].weight.detach().clone()
    for t in range(4, 40):
        optimizer.zero_grad()
        loss_of_three(model, t).backward()
        before = model[1].weight.detach().clone()
        optimizer.step()
        layers = {layer.name: layer for layer in optimizer.layers}
        for name in ("1.weight", "2.weight"):
            layer = layers[name]
            assert layer.weight is model.get_parameter(name)
            assert int(layer.mask.sum()) == layer.live
            assert not layer.weight[~layer.mask].any()
        assert layers["0.weight"].weight is model[0].weight
        if optimizer.history and optimizer.history[-1].step == t:
            continue
        assert not torch.equal(model[1].weight, before)
    assert torch.equal(model[0].weight, frozen)
    assert any(record.grown for record in optimizer.history)


def move_the_second_layer(optimizer, model):
    first, second, _ = optimizer.param_groups
    first["params"], second["params"] = [*first["params"], *second["params"]], []


def replace_weights(optimizer, model):
    """Do as FSDP2 and Accelerate do, for all layers that are in a param group."""
    for layer in model[1:]:
        old, new = layer.weight, nn.Parameter(layer.weight.detach().clone())
        for group in optimizer.param_groups:
            group["params"] = [
                new if parameter is old else parameter for parameter in group["params"]
            ]
        layer.weight = new


@pytest.mark.parametrize("change", [move_the_second_layer, take_out_the_group])
def test_weights_are_masked_if_they_are_replaced_after_their_position_changed(change, state):
    runs = []
    for replace in (False, True):
        model = three_alike()
        each = [{"params": list(layer.parameters())} for layer in model]
        optimizer = SparseOptimizer(torch.optim.AdamW(each), model, state=state, **SETTINGS)
        for t in range(1, 20):
            if t == 3:
                change(optimizer, model)
            if replace and t == 7:
                replace_weights(optimizer, model)
            optimizer.zero_grad()
            loss_of_three(model, t).backward()
            optimizer.step()
        for layer in optimizer.layers[1:]:
            assert layer.weight is model.get_parameter(layer.name)
            assert not layer.weight[~layer.mask].any()
        runs.append(model)
    assert_same_weights(*runs)


@pytest.mark.parametrize("method", ["static", "set"])
def test_live_state_whose_data_is_replaced_equals_dense_state(method):
    """Replace the optimizer's state in place, as a move to another device and back does."""
    weights, moments = [], []
    for state, replaced in [("masked", False), ("masked", True), ("live", True)]:
        model = make()
        optimizer = wrap(model, "AdamW", method=method, state=state)
        for t in range(1, 21):
            train_step(model, optimizer, t)
            if replaced and t in (4, 9):
                for entry in optimizer.state.values():
                    for value in entry.values():
                        value.data = value.data.clone()
        weights.append([parameter.detach().clone() for parameter in model.parameters()])
        saved = optimizer.state_dict()["state"]
        moments.append([float(saved[index]["exp_avg"].abs().sum()) for index in sorted(saved)])
    for other in (1, 2):
        torch.testing.assert_close(weights[other], weights[0])
        torch.testing.assert_close(moments[other], moments[0])


def test_freezing_layers_one_by_one_does_not_increase_the_state(tmp_path):
    model = nn.Sequential(*(nn.Linear(100, 100) for _ in range(5)))
    optimizer = SparseOptimizer(
        torch.optim.AdamW(model.parameters()), model, method="static", density=0.1, init={}
    )
    sizes = []
    for frozen in range(4):
        for parameter in model[:frozen].parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
        model(torch.randn(4, 100)).square().mean().backward()
        optimizer.step()
        held = {
            value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
            for layer in optimizer.layers
            for value in optimizer.state[layer.weight].values()
        }
        torch.save(optimizer.state_dict(), tmp_path / "saved")
        sizes.append((sum(held.values()), (tmp_path / "saved").stat().st_size))
    (first_held, first_saved), (last_held, last_saved) = sizes[0], sizes[-1]
    assert last_held <= 1.01 * first_held
    assert last_saved <= 1.05 * first_saved


class Scaled(OneAfterTheOther):
    """Treats every entry alike and independently, and divides by state that starts at one."""

    def move(self, p, lr):
        entry = self.state[p]
        if not entry:
            entry["scale"] = torch.ones_like(p)
        p.addcdiv_(p.grad, entry["scale"], value=-lr)
        entry["scale"].mul_(0.9).add_(p.grad.abs(), alpha=0.1)


@pytest.mark.parametrize("resumes", [False, True])
def test_live_state_of_a_users_optimizer_starts_at_its_own_value(resumes):
    weights = []
    for state in ("masked", "live"):
        model = make()
        optimizer = SparseOptimizer(
            Scaled(model.parameters()), model, method="set", state=state, **SETTINGS
        )
        train(model, optimizer, 7)
        if resumes:
            saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
            model = make(seed=1)
            optimizer = SparseOptimizer(
                Scaled(model.parameters()), model, method="set", state=state, **SETTINGS
            )
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
        train(model, optimizer, 23, start=8)
        weights.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.isfinite(weight).all() for weight in weights[1])
    torch.testing.assert_close(weights[1], weights[0])


def with_group_added(model, method="set"):
    """The head first, and the rest of the model later."""
    inner = torch.optim.SGD(model.fc2.parameters(), lr=0.1)
    optimizer = SparseOptimizer(inner, model, method=method, **SETTINGS)
    rest = [p for name, p in model.named_parameters() if not name.startswith("fc2")]
    optimizer.add_param_group({"params": rest})
    return optimizer


def test_layers_that_come_later_are_in_the_models_order():
    model = make()
    optimizer = with_group_added(model)
    names = [layer.name for layer in optimizer.layers]
    assert names == [layer.name for layer in wrap(make()).layers]
    # And so a run that is resumed with all groups at once draws the same numbers.
    train(model, optimizer, 7)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    other_model = make(seed=1)
    groups = [{"params": group["params"]} for group in optimizer.param_groups]
    place = {parameter: name for name, parameter in model.named_parameters()}
    for group in groups:
        group["params"] = [other_model.get_parameter(place[p]) for p in group["params"]]
    other = SparseOptimizer(torch.optim.SGD(groups, lr=0.1), other_model, method="set", **SETTINGS)
    other_model.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    train(model, optimizer, 20, start=8)
    train(other_model, other, 20, start=8)
    assert_same_weights(model, other_model)


@pytest.mark.filterwarnings("ignore:the model was sparse before")
def test_state_of_layers_that_came_later_is_not_lost():
    """The model is restored first, then wrapped, and then the optimizer is restored."""
    model = make()
    optimizer = with_group_added(model)
    train(model, optimizer, 17)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    other_model = make(seed=1)
    other_model.load_state_dict(saved[0])
    other = with_group_added(other_model)
    other.load_state_dict(saved[1])
    assert_same_weights(model, other_model)


@pytest.mark.filterwarnings("ignore:the model was sparse before")
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copy_loads_a_checkpoint_of_other_masks_without_loss(copied):
    model = make()
    optimizer = wrap(model)
    train(model, optimizer, 17)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    other_model = make(seed=1)
    other_model.load_state_dict(saved[0])
    other_model, other = copied((other_model, wrap(other_model, seed=4)))
    other.load_state_dict(saved[1])
    assert_same_weights(model, other_model)


def test_layers_added_later_count_as_dense_before():
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))
    optimizer = SparseOptimizer(
        torch.optim.SGD(model[2].parameters(), lr=0.1),
        model,
        method="static",
        density=0.1,
        init={},
        total_steps=1000,
    )
    inputs = torch.randn(4, 20)
    for _ in range(9):
        model(inputs).square().mean().backward()
        optimizer.step()
    before = optimizer.flops(model, inputs).train_measured
    optimizer.add_param_group({"params": list(model[0].parameters())})
    assert optimizer.flops(model, inputs).train_measured == before
    model(inputs).square().mean().backward()
    optimizer.step()
    after = optimizer.flops(model, inputs)
    # One step in ten, in which the first layer has a tenth of its weights.
    saved = 3 * 2 * (600 - 60) / 10
    assert after.train_measured == pytest.approx(before - saved)


@pytest.mark.filterwarnings(
    "ignore:the model was sparse before", "ignore:the checkpoint's density is used"
)
def test_gradients_are_masked_after_a_checkpoint_gave_dense_layers_masks():
    model = make()
    optimizer = wrap(model, method="static")
    train(model, optimizer, 3)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    other_model = make(seed=1)
    other_model.load_state_dict(saved[0])
    other = wrap(other_model, method="static", density=1.0)
    other.load_state_dict(saved[1])
    other.zero_grad()
    loss_of(other_model, 9).backward()
    for layer in other.layers:
        assert not layer.weight.grad[~layer.mask].any()
        assert layer.weight.grad[layer.mask].any()


@pytest.mark.filterwarnings("ignore:the model was sparse before")
def test_model_can_be_wrapped_again_with_other_masks():
    model = make()
    optimizer = wrap(model)
    optimizer = wrap(model, seed=4)
    train(model, optimizer, 6)
    assert_dropped_are_fresh(optimizer)


def test_checkpoint_of_the_first_version_loads():
    model = make()
    optimizer = wrap(model)
    train(model, optimizer, 7)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    del saved[1]["param_groups"][0]["sparseopt"]["fresh"]
    other_model = make(seed=1)
    other = wrap(other_model)
    other_model.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    train(model, optimizer, 20, start=8)
    train(other_model, other, 20, start=8)
    assert_same_weights(model, other_model)


@pytest.mark.parametrize("method", ["rigl", "granet", "rigl-sg", "set", "pruning"])
def test_horizon_that_is_set_after_backward_does_not_grow_by_masked_gradients(method):
    """At step 10 backward() masks gradients, because updates have ended; then they begin again."""
    model = make()
    optimizer = wrap(model, method=method, total_steps=8)
    train(model, optimizer, 9)
    masks = optimizer.masks
    optimizer.zero_grad()
    loss_of(model, 10).backward()
    optimizer.set_horizon(400)
    if method in ("set", "pruning"):
        optimizer.step()
        assert not optimizer.history[-1].skipped
        return
    with pytest.warns(UserWarning, match="update at step 10 was skipped: gradients were masked"):
        optimizer.step()
    assert optimizer.history[-1].skipped
    for name, mask in optimizer.masks.items():
        assert torch.equal(mask, masks[name])
    train(model, optimizer, 5, start=11)
    assert not optimizer.history[-1].skipped
    assert optimizer.history[-1].step == 15
    assert optimizer.history[-1].new > 0


def test_gradients_of_a_pass_before_zero_grad_do_not_count_as_masked():
    model = make()
    optimizer = wrap(model, total_steps=8)
    train(model, optimizer, 9)
    loss_of(model, 10).backward()
    optimizer.set_horizon(400)
    optimizer.zero_grad()
    loss_of(model, 10).backward()
    optimizer.step()
    assert not optimizer.history[-1].skipped
