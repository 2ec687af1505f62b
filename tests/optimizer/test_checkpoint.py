"""Saving and loading restore everything, into fresh objects and both forms of state.

That it also comes back in a fresh process is in tests/integration/test_resume.py.
"""

import copy
import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from sparseopt import DropGrow, Move
from tests.support.catalogue import ELEMENTWISE, build, model_for, torch_optimizers
from tests.support.looking import (
    assert_dropped_are_fresh,
    assert_unchanged,
    snapshot,
)
from tests.support.nets import make
from tests.support.resuming import STEPS, assert_same_run, resumed, saved_and_loaded, wrap
from tests.support.training import train


@pytest.mark.parametrize("into", ["live", "masked"])
@pytest.mark.parametrize("out_of", ["live", "masked"])
@pytest.mark.parametrize("steps", [0, 9, 10])
@pytest.mark.parametrize("method", ["static", "set", "rigl", "pruning"])
def test_resumed_run_is_the_uninterrupted_one(method, steps, out_of, into, tmp_path):
    """State of both forms loads into both modes, before and after updates."""
    model = make()
    optimizer = wrap(model, method=method, state=out_of)
    train(model, optimizer, steps)
    saved = saved_and_loaded(optimizer, tmp_path)
    other_model, other = resumed(model, saved, method=method, state=into)
    assert_same_run(model, optimizer, other_model, other)
    train(model, optimizer, STEPS - steps, start=steps)
    train(other_model, other, STEPS - steps, start=steps)
    assert_same_run(model, optimizer, other_model, other)
    assert_dropped_are_fresh(other)


@pytest.mark.parametrize("name", torch_optimizers())
def test_every_optimizer_resumes(name, tmp_path):
    model = model_for(name)
    optimizer = wrap(model, name=name)
    train(model, optimizer, 12)
    saved = saved_and_loaded(optimizer, tmp_path)
    other_model, other = resumed(model, saved, name)
    train(model, optimizer, 12, start=12)
    train(other_model, other, 12, start=12)
    assert_same_run(model, optimizer, other_model, other)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_bf16_state_comes_back_to_the_last_bit(name, state, tmp_path):
    if name in {"ASGD", "NAdam"}:
        pytest.skip("torch rounds their fp32 scalars to bf16 on loading, without a wrapper too")
    model = make(dtype=torch.bfloat16)
    optimizer = wrap(model, name=name, state=state)
    train(model, optimizer, 7)
    saved = saved_and_loaded(optimizer, tmp_path)
    other_model, other = resumed(model, saved, name, dtype=torch.bfloat16, state=state)
    train(model, optimizer, 7, start=7)
    train(other_model, other, 7, start=7)
    assert_same_run(model, optimizer, other_model, other)


def test_state_dict_is_a_normal_optimizer_state_dict(state):
    """Distributed checkpointing keeps `state` and `param_groups` and nothing else."""
    model = make()
    optimizer = wrap(model, state=state)
    train(model, optimizer, 7)
    saved = optimizer.state_dict()
    assert set(saved) == {"state", "param_groups"}
    count = len(list(model.parameters()))
    assert [i for group in saved["param_groups"] for i in group["params"]] == list(range(count))
    assert set(saved["state"]) <= set(range(count))
    position = {name: i for i, (name, _) in enumerate(model.named_parameters())}
    for name, mask in optimizer.masks.items():
        found = [
            value
            for value in saved["state"][position[name]].values()
            if torch.is_tensor(value) and value.dtype == torch.bool
        ]
        assert len(found) == 1
        assert torch.equal(found[0], mask)


def test_masks_are_not_in_the_state_before_the_first_step():
    """Adam treats a state that is not empty as initialised."""
    model = make()
    optimizer = wrap(model)
    assert all(not entry for entry in optimizer.state.values())
    fresh = wrap(make())
    fresh.load_state_dict(optimizer.state_dict())
    assert all(not entry for entry in fresh.state.values())
    train(model, optimizer, 2)


def test_saving_changes_nothing(state):
    model = make()
    optimizer = wrap(model, state=state)
    train(model, optimizer, 7)
    before = snapshot(optimizer, model)
    saved = copy.deepcopy(optimizer.state_dict())
    assert_unchanged(before, snapshot(optimizer, model))
    other_model, other = resumed(model, saved, state=state)
    train(other_model, other, 10, start=7)
    assert_unchanged(before, snapshot(optimizer, model))


def test_writes_into_a_state_dict_do_not_reach_the_masks():
    """Distributed checkpointing loads into the tensors of a state dict, and then loads the dict."""
    model = make()
    optimizer = wrap(model)
    before = {name: mask.clone() for name, mask in optimizer.masks.items()}
    for entry in optimizer.state_dict()["state"].values():
        if "sparse_mask" in entry:
            entry["sparse_mask"].logical_not_()
    for name, mask in optimizer.masks.items():
        assert torch.equal(mask, before[name])


def test_masks_and_history_of_two_runs_from_one_checkpoint_are_their_own():
    """torch shares the moments with a loaded state dict; masks are never shared."""
    model = make()
    optimizer = wrap(model, method="set")
    train(model, optimizer, 7)
    saved = optimizer.state_dict()
    masks = {name: mask.clone() for name, mask in optimizer.masks.items()}
    other_model = make(seed=9)
    other = wrap(other_model, method="set")
    other.load_state_dict(saved)
    train(other_model, other, 10, start=7)
    assert len(other.history) == 3
    assert len(optimizer.history) == 1
    for name, mask in masks.items():
        assert torch.equal(optimizer.masks[name], mask)


def test_loading_replaces_masks_and_weights_have_to_follow():
    """Weights outside the loaded mask are zero, even if the model was not loaded."""
    model = make()
    optimizer = wrap(model)
    train(model, optimizer, 12)
    other_model = make(seed=5)
    other = wrap(other_model, seed=17)
    other.load_state_dict(optimizer.state_dict())
    for layer in other.layers:
        assert torch.equal(layer.mask, optimizer.masks[layer.name])
        assert not layer.weight[~layer.mask].any()
    train(other_model, other, 8, start=12)
    assert_dropped_are_fresh(other)


def test_order_of_loading_model_and_optimizer_does_not_matter():
    model = make()
    optimizer = wrap(model)
    train(model, optimizer, 12)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    runs = []
    for model_first in (True, False):
        fresh_model = make(seed=5)
        fresh = wrap(fresh_model, seed=17)
        if model_first:
            fresh_model.load_state_dict(saved[0])
            fresh.load_state_dict(copy.deepcopy(saved[1]))
        else:
            fresh.load_state_dict(copy.deepcopy(saved[1]))
            fresh_model.load_state_dict(saved[0])
        train(fresh_model, fresh, 12, start=12)
        runs.append((fresh_model, fresh))
    assert_same_run(*runs[0], *runs[1])


@pytest.mark.filterwarnings("ignore:the model was sparse before")
@pytest.mark.parametrize("method", ["set", "rigl", "pruning"])
def test_model_that_was_loaded_before_wrapping_resumes(method, state):
    """Lightning and the HF Trainer restore the model, make the optimizer, and then restore it."""
    model = make()
    optimizer = wrap(model, method=method, state=state)
    train(model, optimizer, 12)
    fresh_model = make(seed=5)
    fresh_model.load_state_dict(model.state_dict())
    fresh = wrap(fresh_model, method=method, state=state, seed=17)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 12, start=12)
    train(fresh_model, fresh, 12, start=12)
    assert_same_run(model, optimizer, fresh_model, fresh)


def about_to_resume(**settings):
    """A model after 12 steps with its optimizer, and a fresh pair that has only its weights."""
    model, fresh_model = make(), make(seed=5)
    optimizer = wrap(model, **settings)
    train(model, optimizer, 12)
    fresh = wrap(fresh_model, seed=17, **settings)
    fresh_model.load_state_dict(model.state_dict())
    return model, optimizer, fresh_model, fresh


@pytest.mark.parametrize("method", ["set", "rigl", "pruning"])
def test_round_trip_before_the_checkpoint_is_loaded_loses_nothing(method, state):
    """Accelerate makes a state dict when it prepares an optimizer; the HF Trainer does so too."""
    model, optimizer, fresh_model, fresh = about_to_resume(method=method, state=state)
    fresh.load_state_dict(fresh.state_dict())
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 12, start=12)
    train(fresh_model, fresh, 12, start=12)
    assert_same_run(model, optimizer, fresh_model, fresh)


def test_probe_step_before_the_checkpoint_is_loaded_loses_nothing(state):
    """Distributed checkpointing makes a state dict when it loads an optimizer."""
    model, optimizer, fresh_model, fresh = about_to_resume(state=state)
    rates = [group["lr"] for group in fresh.param_groups]
    for group in fresh.param_groups:
        group["lr"] = 0.0
    for parameter in fresh_model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    fresh.step()
    for group, rate in zip(fresh.param_groups, rates, strict=True):
        group["lr"] = rate
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 12, start=12)
    train(fresh_model, fresh, 12, start=12)
    assert_same_run(model, optimizer, fresh_model, fresh)


@pytest.mark.parametrize(
    "numbers",
    [
        {"total_steps": np.int64(STEPS)},
        {"t_end": np.int32(18)},
        {"delta_t": np.int64(5)},
        {"alpha": np.float64(0.3)},
        {"alpha": np.float32(0.25)},
    ],
)
def test_settings_may_be_numbers_of_numpy(numbers, tmp_path):
    """torch.load refuses them by default, and reads numbers of Python."""
    model = make()
    optimizer = wrap(model, **numbers)
    train(model, optimizer, 7)
    saved = saved_and_loaded(optimizer, tmp_path)
    assert_same_run(model, optimizer, *resumed(model, saved, **numbers))


def test_horizon_may_be_set_by_a_number_of_numpy(tmp_path):
    model = make()
    optimizer = wrap(model)
    optimizer.set_horizon(np.int64(2 * STEPS))
    saved = saved_and_loaded(optimizer, tmp_path)
    assert saved["param_groups"][0]["sparseopt"]["total_steps"] == 2 * STEPS


@dataclass(frozen=True)
class ByNumPy(DropGrow):
    """A method of the user's own that computes with NumPy."""

    name = "by-numpy"

    def initial_run_state(self):
        return {"updates": np.int64(0), "mean": np.float32(0)}

    def fraction(self, step, schedule):
        return np.float64(0.25)

    def live_count(self, shape, target):
        return np.int64(target)

    def moves(self, layers, update):
        update.run_state["updates"] += 1
        update.run_state["mean"] = np.mean([update.run_state["mean"], update.fraction])
        return [Move(drop=count, grow=count) for count in np.full(len(layers), 2)]

    def grow_scores(self, layer, update):
        return update.random_scores(layer)


def test_method_of_the_users_own_may_return_numbers_of_numpy(tmp_path):
    model = make()
    optimizer = wrap(model, method=ByNumPy())
    train(model, optimizer, 12)
    saved = saved_and_loaded(optimizer, tmp_path)
    assert_same_run(model, optimizer, *resumed(model, saved, method=ByNumPy()))
    kept = dict(json.loads(saved["param_groups"][0]["sparseopt"]["run_state"]))
    assert kept == {"updates": 2, "mean": 0.1875}


def test_groups_options_come_back():
    model = make()
    optimizer = wrap(model)
    optimizer.param_groups[0]["lr"] = 0.123
    other = wrap(make())
    other.load_state_dict(optimizer.state_dict())
    assert other.param_groups[0]["lr"] == 0.123
    plain_keys = set(build("AdamW", make().parameters()).param_groups[0])
    assert set(other.param_groups[0]) == plain_keys
