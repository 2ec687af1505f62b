"""Following a run step by step with an oracle that sees the same weights and gradients."""

import numpy as np

from tests.support.by_hand import HandMasked
from tests.support.catalogue import build, fresh_value
from tests.support.looking import (
    assert_dropped_are_fresh,
    assert_same_state,
    logical,
    per_weight_state,
)
from tests.support.nets import SPARSE_NAMES, make
from tests.support.training import dense_gradients, train_step


def states(optimizer):
    return {
        layer.name: per_weight_state(optimizer, layer.weight, layer.mask)
        for layer in optimizer.layers
    }


def assert_masks(optimizer, oracle, t):
    for name in SPARSE_NAMES:
        np.testing.assert_array_equal(
            logical(optimizer.masks[name]), oracle.masks[name], err_msg=f"{name} after step {t}"
        )


def check_update(model, optimizer, oracle, t, weights, gradients, before):
    """One update of the real run against the oracle, from the same weights and gradients."""
    updates = oracle.update(t, weights, gradients)
    assert_masks(optimizer, oracle, t)
    params = dict(model.named_parameters())
    for name, update in updates.items():
        expected = np.where(update.reset, 0.0, weights[name])
        np.testing.assert_array_equal(logical(params[name]), expected, err_msg=name)
        after = per_weight_state(optimizer, params[name], optimizer.masks[name])
        for key, old in before[name].items():
            fresh = fresh_value(optimizer.inner, key, params[name].dtype)
            np.testing.assert_array_equal(after[key], np.where(update.reset, fresh, old), key)
    return updates


def run_against_oracle(model, optimizer, oracle, steps, on_update=None):
    """Train, and compare after every step; returns how many updates there were."""
    assert_masks(optimizer, oracle, 0)
    seen = 0
    for t in range(1, steps + 1):
        updating = oracle.is_update(t)
        assert optimizer.is_update_step == updating, t
        if updating:
            weights = {name: logical(p) for name, p in model.named_parameters()}
            gradients = {name: logical(g) for name, g in dense_gradients(model, t).items()}
            sparse_gradients = {name: gradients[name] for name in SPARSE_NAMES}
            before, old_masks = states(optimizer), dict(oracle.masks)
            train_step(model, optimizer, t)
            check_update(model, optimizer, oracle, t, weights, sparse_gradients, before)
            for name, p in model.named_parameters():
                if name not in SPARSE_NAMES:
                    np.testing.assert_array_equal(logical(p), weights[name], err_msg=name)
            if on_update is not None:
                on_update(t, old_masks, weights, gradients)
            seen += 1
        else:
            gradients = dense_gradients(model, t)
            oracle.observe(t, {name: logical(gradients[name]) for name in SPARSE_NAMES})
            train_step(model, optimizer, t)
            assert_masks(optimizer, oracle, t)
        assert_dropped_are_fresh(optimizer)
    return seen


def assert_run_is_that_by_hand(name, model, optimizer, oracle, steps):
    """Train beside a dense model that is masked by hand; the results are equal."""
    own_model = make()
    by_hand = HandMasked(own_model, build(name, own_model.parameters()), oracle)
    for t in range(1, steps + 1):
        train_step(model, optimizer, t)
        by_hand.step()
        assert_masks(optimizer, oracle, t)
    for mine, theirs in zip(model.parameters(), own_model.parameters(), strict=True):
        np.testing.assert_array_equal(logical(mine), logical(theirs))
    for layer in optimizer.layers:
        theirs = per_weight_state(by_hand.optimizer, by_hand.params[layer.name])
        assert_same_state(per_weight_state(optimizer, layer.weight, layer.mask), theirs)
