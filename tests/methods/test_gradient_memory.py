"""Gradient memories are fed once a step, with the full gradient of steps that count."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch

from sparseopt import SNFS, Accumulated, RigL, RigLSM, Smoothed, SparseOptimizer
from tests import oracle
from tests.support import resuming
from tests.support.agreement import run_against_oracle
from tests.support.catalogue import build
from tests.support.looking import assert_dropped_are_fresh, assert_same_weights, logical
from tests.support.nets import SPARSE_NAMES, loss_of, make
from tests.support.oracles import oracle_for
from tests.support.resuming import assert_same_run, resumed, saved_and_loaded
from tests.support.training import backward, dense_gradients, train, train_step
from tests.support.wrapping import SETTINGS, wrap

KEY = "sparse_memory"
ACCUMULATING = [SNFS(), RigL(gradient=Smoothed(0.9)), RigL(gradient=Accumulated(3)), RigLSM()]


def snfs(model, name="SGD", **changes):
    return wrap(model, name, method="snfs", **changes)


def held(optimizer):
    """The memory by layer, as in a checkpoint."""
    state = optimizer.state_dict()
    places = {entry["name"]: entry["index"] for entry in json.loads(progress(state)["layers"])}
    return {
        name: logical(state["state"][index][KEY])
        for name, index in places.items()
        if KEY in state["state"].get(index, {})
    }


def progress(state):
    return state["param_groups"][0]["sparseopt"]


def assert_held(optimizer, momentum):
    kept = held(optimizer)
    assert kept.keys() == {layer.name for layer in optimizer.layers if layer.target < layer.numel}
    for name, values in kept.items():
        np.testing.assert_allclose(values, momentum.m[name], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("rule", ["smoothed", "last 1", "last 3", "last 100"])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_growth_by_many_gradients_agrees_with_the_oracle(name, rule, state):
    last = None if rule == "smoothed" else int(rule.split()[1])
    grow = Smoothed(0.9) if last is None else Accumulated(last)
    model = make()
    optimizer = wrap(model, name, method=RigL(gradient=grow), state=state)
    plain = oracle_for("rigl", model, **SETTINGS)
    if last is None:
        reference = oracle.grow_by_momentum(plain)
    else:
        reference = oracle.AccumulatedRigLOracle(
            plain.masks, last=last, delta_t=5, t_end=plain.t_end, alpha=plain.alpha
        )
    assert run_against_oracle(model, optimizer, reference, 40) == 5


def test_gradients_are_dense_until_step_on_every_step_that_is_accumulated():
    model = make()
    optimizer = snfs(model)
    t_end = int(0.75 * 40)
    for t in range(1, 36):
        dense = dense_gradients(model, t)
        updating = optimizer.is_update_step
        backward(model, t)
        for name in SPARSE_NAMES:
            gradient = logical(dict(model.named_parameters())[name].grad)
            live = logical(optimizer.masks[name])
            expected = logical(dense[name])
            if t > t_end:
                expected = np.where(live, expected, 0)
            np.testing.assert_array_equal(gradient, expected)
        optimizer.step()
        assert updating == (t % 5 == 0 and t < t_end)
        for layer in optimizer.layers:
            assert not layer.weight.grad[~layer.mask].any()
        assert_dropped_are_fresh(optimizer)


@pytest.mark.parametrize("method", [RigL(gradient=Accumulated(3)), RigLSM()])
def test_gradients_are_masked_on_all_other_steps(method):
    model = make()
    inner = build("SGD", model.parameters())
    optimizer = SparseOptimizer(inner, model, method=method, **SETTINGS)
    window = 1 if isinstance(method, RigLSM) else 3
    for t in range(1, 36):
        backward(model, t)
        accumulated = t < 30 and (-t) % 5 < window
        dropped = [layer.weight.grad[~layer.mask].any() for layer in optimizer.layers]
        assert any(dropped) == (accumulated and -(-t // 5) * 5 < 30), t
        optimizer.step()


def test_memory_is_fed_once_a_step_with_the_mean_of_all_micro_batches():
    model = make()
    optimizer, momentum = snfs(model), oracle.Momentum()
    for t in range(1, 13):
        indices = [10 * t, 10 * t + 1, 10 * t + 2]
        untouched = make()
        untouched.load_state_dict(model.state_dict())
        for net in (untouched, model):
            net.zero_grad()
            for index in indices:
                (loss_of(net, index) / 3).backward()
        params = dict(untouched.named_parameters())
        momentum.feed({name: logical(params[name].grad) for name in SPARSE_NAMES})
        optimizer.step()
        assert_held(optimizer, momentum)


@pytest.mark.parametrize("state", ["live", "masked"])
def test_memory_holds_unscaled_gradients_and_none_of_a_step_that_overflowed(state):
    """A power of two scales without loss, so the run is the unscaled one to the last bit."""
    model, other = make(), make()
    scaled, unscaled = snfs(model, state=state), snfs(other, state=state)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for t in range(1, 13):
        for overflow in (True, False) if t in {3, 5} else (False,):
            scaled.zero_grad()
            scaler.scale(loss_of(model, t)).backward()
            if overflow:
                model.fc1.weight.grad[0, 0] = float("inf")
            scaler.step(scaled)
            scaler.update()
        train_step(other, unscaled, t)
        for name, values in held(unscaled).items():
            np.testing.assert_array_equal(held(scaled)[name], values)
    assert_same_weights(model, other)
    assert scaled.history == unscaled.history


@pytest.mark.parametrize("name", ["SGD", "LBFGS"])
def test_closure_feeds_the_memory_once_with_the_gradient_where_the_step_began(name):
    model = make()
    optimizer, momentum = snfs(model, name), oracle.Momentum()
    for t in range(1, 9):
        gradients = dense_gradients(model, t)
        momentum.feed({layer: logical(gradients[layer]) for layer in SPARSE_NAMES})

        def closure(t=t):
            optimizer.zero_grad()
            loss = loss_of(model, t)
            loss.backward()
            return loss

        optimizer.step(closure)
        assert_held(optimizer, momentum)
        assert_dropped_are_fresh(optimizer)


@pytest.mark.parametrize("step", [4, 5])
def test_gradient_that_is_not_finite_is_not_accumulated(step):
    """The NaN is at a dropped weight: step 4 masks it, and step 5, an update step, is skipped."""
    model = make()
    optimizer = snfs(model)
    train(model, optimizer, step - 1)
    before = held(optimizer)
    backward(model, step)
    dropped = (~optimizer.masks["fc1.weight"]).nonzero()[0]
    model.fc1.weight.grad[tuple(dropped)] = float("nan")
    if step == 5:
        with pytest.warns(UserWarning, match="not finite"):
            optimizer.step()
    else:
        optimizer.step()
    for name, values in held(optimizer).items():
        np.testing.assert_array_equal(values, before[name])
    train(model, optimizer, 10, start=step)
    assert all(np.isfinite(values).all() for values in held(optimizer).values())
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_layer_without_a_gradient_keeps_what_it_had():
    model = make()
    optimizer = snfs(model)
    train(model, optimizer, 3)
    before = held(optimizer)
    backward(model, 4)
    model.fc1.weight.grad = None
    optimizer.step()
    after = held(optimizer)
    np.testing.assert_array_equal(after["fc1.weight"], before["fc1.weight"])
    assert (after["conv2.weight"] != before["conv2.weight"]).any()


def test_memory_is_in_single_precision_at_least():
    model = make(dtype=torch.bfloat16)
    optimizer = snfs(model)
    train(model, optimizer, 6)
    kept = [entry[KEY] for entry in optimizer.state_dict()["state"].values() if KEY in entry]
    assert kept
    assert all(tensor.dtype == torch.float32 for tensor in kept)


def test_memory_is_not_fed_after_masks_have_stopped():
    model = make()
    optimizer = snfs(model)
    train(model, optimizer, 30)
    assert any(values.any() for values in held(optimizer).values())
    train(model, optimizer, 1, start=30)
    assert not any(values.any() for values in held(optimizer).values())


@pytest.mark.parametrize("stop", [7, 10, 12, 23])
@pytest.mark.parametrize("method", ACCUMULATING)
def test_resumed_run_is_the_uninterrupted_one_to_the_last_bit(method, stop, state, tmp_path):
    model = make()
    optimizer = resuming.wrap(model, method=method, state=state)
    train(model, optimizer, stop)
    fresh_model, fresh = resumed(
        model, saved_and_loaded(optimizer, tmp_path), method=method, state=state
    )
    for name, values in held(optimizer).items():
        np.testing.assert_array_equal(held(fresh)[name], values)
    train(model, optimizer, 24 - stop, start=stop)
    train(fresh_model, fresh, 24 - stop, start=stop)
    assert_same_run(model, optimizer, fresh_model, fresh)
    assert len(fresh.history) >= 3


@pytest.mark.parametrize("how", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize("method", ACCUMULATING)
def test_copies_accumulate_alike_and_apart(method, how):
    model = make()
    inner = build("AdamW", model.parameters())
    optimizer = SparseOptimizer(inner, model, method=method, **SETTINGS)
    train(model, optimizer, 9)
    other_model, other = how((model, optimizer))
    train(model, optimizer, 15, start=9)
    train(other_model, other, 15, start=9)
    assert_same_weights(model, other_model)
    assert optimizer.history == other.history
    for name, mask in optimizer.masks.items():
        assert torch.equal(mask, other.masks[name])


def test_memory_follows_the_model_to_another_device(device):
    model = make()
    optimizer = snfs(model)
    for group in optimizer.param_groups:
        group["momentum"] = 0.0  # torch leaves the state of a moved model where it was
    train(model, optimizer, 7)
    before = held(optimizer)
    model.to(device)
    train(model, optimizer, 1, start=7)
    after = held(optimizer)
    assert all((after[name] != values).any() for name, values in before.items())
    assert_dropped_are_fresh(optimizer)


def test_measured_cost_counts_every_dense_gradient():
    """The formula's 2 f_s + f_d on the steps until masks stop, and 3 f_s on the others."""
    model = make()
    optimizer = snfs(model, init="er")
    inputs, total = torch.zeros(1, 3, 6, 6), 0.0
    for t in range(1, 41):
        report = optimizer.flops(model, inputs)
        sparse, dense = report.inference_sparse, report.inference_dense
        total += 2 * sparse + dense if t <= 30 else 3 * sparse
        train(model, optimizer, 1, start=t - 1)
    assert optimizer.flops(model, inputs).train_measured == pytest.approx(total / 40)


@pytest.mark.parametrize(
    ("make_rule", "error", "words"),
    [
        (lambda: Smoothed(beta=1.0), ValueError, r"beta=1\.0"),
        (lambda: Smoothed(beta="0.9"), TypeError, "beta"),
        (lambda: Accumulated(last=0), ValueError, "last=0"),
        (lambda: Accumulated(last=2.5), TypeError, r"last=2\.5"),
    ],
)
def test_bad_settings_are_refused_by_name(make_rule, error, words):
    with pytest.raises(error, match=words):
        make_rule()
