"""What comes late: groups, precisions, entries of state, and calls after detach() or a pickle."""

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

SETTINGS = {"density": 0.2, "total_steps": 40, "delta_t": 5, "seed": 3}
POOLED = {"method": "static", "density": 0.3, "init": "uniform", "seed": 3}


def wrap(model, name="SGD", **changes):
    return SparseOptimizer(build(name, model.parameters()), model, **{**SETTINGS, **changes})


@pytest.mark.parametrize("method", ["rigl", "snfs"])
def test_without_a_model_groups_added_later_have_names_of_their_own(method):
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


def test_a_weight_that_takes_anothers_place_in_the_model_is_refused_by_name(state):
    model = make()
    optimizer = wrap(model, "AdamW", state=state)
    train(model, optimizer, 3)
    model.fc2 = torch.nn.Linear(16, 5)
    before = snapshot(optimizer, model)
    with pytest.raises(ValueError, match=r"'fc2\.weight'.*needs a new SparseOptimizer"):
        optimizer.add_param_group({"params": list(model.fc2.parameters())})
    assert_unchanged(before, snapshot(optimizer, model))


def test_an_unpickled_optimizer_does_not_guess_what_a_group_is():
    """What can be sparse is for the model to say, and that is not in the pickle."""
    model = make()
    optimizer = wrap(model)
    copied = pickle.loads(pickle.dumps(optimizer))
    with pytest.raises(RuntimeError, match="without its model"):
        copied.add_param_group({"params": [torch.nn.Parameter(torch.zeros(5, 5))]})
    assert len(copied.param_groups) == 1


def test_a_group_that_the_user_took_out_is_named_and_detach_goes_on(state):
    model = make()
    groups = [
        {"params": list(model.conv1.parameters()) + list(model.conv2.parameters())},
        {"params": list(model.fc1.parameters()) + list(model.fc2.parameters())},
    ]
    inner = torch.optim.AdamW(groups, lr=0.01)
    optimizer = SparseOptimizer(inner, model, state=state, **SETTINGS)
    train(model, optimizer, 3)
    optimizer.param_groups.pop(0)
    with pytest.raises(RuntimeError, match=r"'conv1\.weight' is in none of"):
        optimizer.state_dict()
    optimizer.detach()
    for name, p in model.named_parameters():
        if name.startswith("fc"):
            assert inner.state[p]["exp_avg"].shape == p.shape


def test_the_state_dict_of_a_detached_optimizer_loads_into_a_sparse_one(state):
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


def test_a_detached_optimizer_takes_nothing_in():
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
def test_a_layer_whose_precision_changes_goes_on_as_with_dense_state(dtype):
    """With SGD; torch's own AdamW does not take state of another precision."""
    weights = []
    for state in ("compact", "masked"):
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
    for compact, masked in zip(*weights, strict=True):
        assert compact.dtype == masked.dtype
        torch.testing.assert_close(compact, masked)


class FilledLate(torch.optim.Optimizer):
    """Brings in an entry before there is anything in it; an accumulator, as Adagrad's."""

    def __init__(self, params, lr=0.01):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p not in self.state:
                    entry = {}
                    self.state[p] = entry
                    entry["sum"] = torch.full_like(p, 0.1)
                entry = self.state[p]
                entry["sum"].add_(p.grad.square())
                p.sub_(group["lr"] * p.grad / entry["sum"].sqrt())


@pytest.mark.parametrize("method", ["set", "rigl"])
def test_state_that_is_filled_unseen_begins_where_it_began(method):
    model = make()
    optimizer = SparseOptimizer(FilledLate(model.parameters()), model, method=method, **SETTINGS)
    for t in range(1, 30 + 1):
        train_step(model, optimizer, t)
        assert_dropped_are_fresh(optimizer, {"sum": 0.1})
    assert all(torch.isfinite(p).all() for p in model.parameters())
