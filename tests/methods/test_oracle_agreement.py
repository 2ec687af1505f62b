"""After every update, masks, weights and optimizer state equal the NumPy oracle's.

In every run the oracle gets the weights and dense gradients from just before each update. The dense
gradients come from a copy of the model without hooks.
"""

import numpy as np
import pytest
import torch

from sparseopt import Pruning, SparseOptimizer
from tests.oracle import brute_force_order
from tests.support.agreement import assert_masks, run_against_oracle
from tests.support.arithmetic import place_does_not_matter
from tests.support.by_hand import HandMasked
from tests.support.catalogue import build
from tests.support.looking import assert_same_state, logical, masks_of, per_weight_state
from tests.support.nets import SPARSE_NAMES, make
from tests.support.oracles import oracle_for
from tests.support.training import train_step
from tests.support.wrapping import settings_with

STEPS = 60
FORMS = {
    "fp32": {"dtype": torch.float32, "channels_last": False},
    "fp32-channels-last": {"dtype": torch.float32, "channels_last": True},
    "bf16-channels-last": {"dtype": torch.bfloat16, "channels_last": True},
}
SETTINGS = settings_with(total_steps=STEPS, delta_t=4, init="erk")


def wrapped(method, name, form, state, *, device="cpu", regrow="keep", **changes):
    model = make(device=device, **FORMS[form])
    settings = {**SETTINGS, **changes}
    oracle = oracle_for(method, model, regrow=regrow, **settings)
    if regrow != "keep":
        settings["regrow"] = regrow
    inner = build(name, model.parameters())
    optimizer = SparseOptimizer(inner, model, method=method, state=state, **settings)
    return model, optimizer, oracle


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["SGD", "AdamW", "Rprop"])
@pytest.mark.parametrize("method", ["set", "rigl", "pruning"])
def test_every_update_agrees_with_the_oracle(method, name, form, state, device):
    model, optimizer, oracle = wrapped(method, name, form, state, device=device)
    updates = run_against_oracle(model, optimizer, oracle, STEPS)
    assert updates >= 10
    assert sum(layer.live for layer in optimizer.layers) == sum(
        layer.target for layer in optimizer.layers
    )


@pytest.mark.parametrize("regrow", ["zero", "never"])
@pytest.mark.parametrize("method", ["set", "rigl"])
def test_other_ways_to_regrow_agree_with_the_oracle(method, regrow, state):
    model, optimizer, oracle = wrapped(method, "AdamW", "bf16-channels-last", state, regrow=regrow)
    assert run_against_oracle(model, optimizer, oracle, STEPS) >= 10


@pytest.mark.parametrize("method", ["set", "rigl"])
def test_regrow_never_drops_no_more_than_it_can_grow(method):
    """At density .9 a fraction of .5 would drop more weights than are dropped at the start."""
    model, optimizer, oracle = wrapped(
        method, "SGD", "fp32", "auto", regrow="never", density=0.9, alpha=0.5, init="er"
    )
    assert run_against_oracle(model, optimizer, oracle, STEPS) >= 10
    for record in optimizer.history:
        assert record.dropped == record.grown


def test_pruning_by_layer_agrees_with_the_oracle(state):
    model = make()
    oracle = oracle_for("pruning", model, scope="layer", **SETTINGS)
    inner = build("AdamW", model.parameters())
    optimizer = SparseOptimizer(
        inner, model, method=Pruning(scope="layer"), state=state, **SETTINGS
    )
    assert run_against_oracle(model, optimizer, oracle, STEPS) >= 10


@pytest.mark.parametrize("init", ["er", "uniform"])
@pytest.mark.parametrize("method", ["set", "rigl", "pruning"])
def test_other_distributions_agree_with_the_oracle(method, init):
    model, optimizer, oracle = wrapped(method, "SGD", "fp32", "auto", init=init, density=0.1)
    assert run_against_oracle(model, optimizer, oracle, STEPS) >= 10


@pytest.mark.parametrize("method", ["rigl", "pruning"])
def test_ties_abound_in_bf16_and_fall_to_the_lowest_index(method, state):
    """Brute force in pure Python, and a count of the updates that a tie decided."""
    model, optimizer, oracle = wrapped(method, "SGD", "bf16-channels-last", state)
    decided_by_tie = []

    def on_update(t, old_masks, weights, gradients):
        for name in SPARSE_NAMES:
            old, new = old_masks[name], logical(optimizer.masks[name])
            if method == "pruning" or old.all():
                continue
            fraction = optimizer.history[-1].fraction
            k = int(fraction * int(old.sum()))
            magnitude, growth = np.abs(weights[name]), np.abs(gradients[name])
            drop_order = brute_force_order(old, magnitude, smallest_first=True)
            survivors = old.copy()
            survivors[drop_order[:k]] = False
            grow_order = brute_force_order(~survivors, growth, smallest_first=False)
            expected = survivors.copy()
            expected[grow_order[:k]] = True
            assert new.tolist() == expected.tolist(), (name, t)
            if 0 < k < len(grow_order):
                decided_by_tie.append(growth[grow_order[k - 1]] == growth[grow_order[k]])
        if method == "pruning":
            check_pruning(old_masks, weights)

    def check_pruning(old_masks, weights):
        live = [
            (abs(float(weights[name][i])), order, i)
            for order, name in enumerate(SPARSE_NAMES)
            if name in oracle.prunable
            for i in np.flatnonzero(old_masks[name])
        ]
        kept = sum(int(logical(optimizer.masks[name]).sum()) for name in oracle.prunable)
        live.sort()
        excess = len(live) - kept
        expected = {(order, i) for _, order, i in live[excess:]}
        actual = {
            (order, i)
            for order, name in enumerate(SPARSE_NAMES)
            if name in oracle.prunable
            for i in np.flatnonzero(logical(optimizer.masks[name]))
        }
        assert actual == expected
        if excess > 0:
            decided_by_tie.append(live[excess - 1][0] == live[excess][0])

    run_against_oracle(model, optimizer, oracle, STEPS, on_update=on_update)
    assert sum(decided_by_tie) >= 5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["SGD", "AdamW", "Rprop"])
@pytest.mark.parametrize("method", ["static", "set", "rigl", "pruning"])
def test_whole_run_agrees_with_a_dense_run_masked_by_hand(method, name, form, state):
    """A plain optimizer that is masked by hand gives the same result, to the last bit."""
    if state == "live" and not place_does_not_matter(name, {}, FORMS[form]["dtype"]):
        pytest.skip("torch's own last bit depends on the place; test_torch_optimizers.py has it")
    model, optimizer, oracle = wrapped(method, name, form, state)
    own_model = make(**FORMS[form])
    by_hand = HandMasked(own_model, build(name, own_model.parameters()), oracle)

    for t in range(1, STEPS + 1):
        train_step(model, optimizer, t)
        by_hand.step()
        assert_masks(optimizer, oracle, t)

    for (weight_name, mine), theirs in zip(
        model.named_parameters(), own_model.parameters(), strict=True
    ):
        np.testing.assert_array_equal(logical(mine), logical(theirs), err_msg=weight_name)
    for layer in optimizer.layers:
        reference = per_weight_state(by_hand.optimizer, by_hand.params[layer.name])
        assert_same_state(per_weight_state(optimizer, layer.weight, layer.mask), reference)


def test_masks_move_far_enough_to_mean_something():
    """Guards the tests above: over a run most of the mask is replaced."""
    model, optimizer, oracle = wrapped("rigl", "SGD", "fp32", "auto")
    first = masks_of(optimizer)
    run_against_oracle(model, optimizer, oracle, STEPS)
    last = masks_of(optimizer)
    moved = sum(int((first[n] & ~last[n]).sum()) for n in SPARSE_NAMES)
    live = sum(int(first[n].sum()) for n in SPARSE_NAMES)
    assert moved > 0.2 * live
