"""Saving a run and resuming it in fresh objects."""

import copy
from functools import partial

import torch

from tests.support import wrapping
from tests.support.looking import assert_same_state, assert_same_weights, per_weight_state
from tests.support.nets import make
from tests.support.wrapping import settings_with

STEPS = 24
SETTINGS = settings_with(total_steps=STEPS)
wrap = partial(wrapping.wrap, name="AdamW", **SETTINGS)


def saved_and_loaded(optimizer, tmp_path):
    """Save to a file and load with torch's default: weights only, no code."""
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    return torch.load(tmp_path / "optimizer.pt")


def assert_same_run(model, optimizer, other_model, other):
    assert_same_weights(model, other_model)
    assert optimizer.history == other.history
    assert optimizer.steps == other.steps
    assert optimizer.is_update_step == other.is_update_step
    for left, right in zip(optimizer.layers, other.layers, strict=True):
        assert torch.equal(left.mask, right.mask), left.name
        assert (left.name, left.live, left.target) == (right.name, right.live, right.target)
        assert_same_state(
            per_weight_state(optimizer, left.weight, left.mask),
            per_weight_state(other, right.weight, right.mask),
        )


def resumed(model, saved, name="AdamW", *, dtype=torch.float32, channels_last=False, **settings):
    """Make fresh objects, as a new process does, and load both state dicts."""
    fresh_model = make(type(model), seed=9, dtype=dtype, channels_last=channels_last)
    fresh = wrap(fresh_model, name=name, **settings)
    fresh_model.load_state_dict(model.state_dict())
    fresh.load_state_dict(copy.deepcopy(saved))
    return fresh_model, fresh
