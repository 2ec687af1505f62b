"""State of a user's own method: fed once a step, moved with the masks, saved and restored."""

import copy
import json
import pickle
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseopt import CheckpointError, DropGrow, SparseOptimizer, speed_up
from sparseopt.speedup import kernels
from tests.oracle.masks import uniform_scores
from tests.oracle.methods import regrowth
from tests.oracle.schedules import cosine_fraction, is_update_step
from tests.support import resuming
from tests.support.catalogue import build
from tests.support.looking import (
    assert_dropped_are_fresh,
    assert_same_weights,
    assert_unchanged,
    logical,
    snapshot,
)
from tests.support.nets import SPARSE_NAMES, loss_of, make
from tests.support.oracles import oracle_for
from tests.support.own_methods import FrequentGradient, SmoothedSalience
from tests.support.resuming import assert_same_run, resumed, saved_and_loaded
from tests.support.training import backward, dense_gradients, train, train_step
from tests.support.wrapping import SETTINGS, settings_with, wrap

PREFIX = "sparse_state."


def held(optimizer, name):
    """One tensor of each layer's state, by layer, as a checkpoint keeps it."""
    state = optimizer.state_dict()
    entries = json.loads(state["param_groups"][0]["sparseopt"]["layers"])
    kept = {entry["name"]: state["state"].get(entry["index"], {}) for entry in entries}
    return {
        layer: entry[PREFIX + name].clone()
        for layer, entry in kept.items()
        if PREFIX + name in entry
    }


def run_state(optimizer):
    return dict(json.loads(optimizer.state_dict()["param_groups"][0]["sparseopt"]["run_state"]))


class SalienceOracle:
    """The method of the tests in NumPy, on the weights and dense gradients of the real run."""

    def __init__(self, model, decay, **settings):
        plain = oracle_for("set", model, **settings)
        self.masks, self.generator = plain.masks, plain.generator
        self.t_end, self.alpha, self.delta_t = plain.t_end, plain.alpha, settings["delta_t"]
        self.decay = decay
        self.salience = {n: np.zeros(len(mask), np.float32) for n, mask in self.masks.items()}
        self.updates = 0

    def step(self, t, weights, gradients):
        for name, mask in self.masks.items():
            if t <= self.t_end and not mask.all():
                live = np.where(mask, weights[name] * gradients[name], 0).astype(np.float32)
                old = np.float32(self.decay) * self.salience[name]
                self.salience[name] = old + np.float32(1 - self.decay) * np.abs(live)
        if not is_update_step(t, self.delta_t, self.t_end):
            return
        self.updates += 1
        for name, mask in list(self.masks.items()):
            if mask.all():
                continue
            size = np.abs(gradients[name]).astype(np.float32)
            result = regrowth(
                mask,
                self.salience[name],
                lambda size=size: size * uniform_scores(self.generator, len(size)),
                cosine_fraction(self.alpha, t, self.t_end),
            )
            self.masks[name] = result.mask
            self.salience[name] = np.where(result.reset, 0, self.salience[name])


def run_beside_oracle(name, state, steps=40, decay=0.9, **changes):
    settings = settings_with(**changes)
    model = make()
    optimizer = wrap(model, name, method=SmoothedSalience(decay=decay), state=state, **settings)
    reference = SalienceOracle(model, decay, **settings)
    for t in range(1, steps + 1):
        weights = {n: logical(p) for n, p in model.named_parameters() if n in SPARSE_NAMES}
        gradients = {n: logical(g) for n, g in dense_gradients(model, t).items()}
        train_step(model, optimizer, t)
        reference.step(t, weights, gradients)
        for layer, mask in reference.masks.items():
            np.testing.assert_array_equal(logical(optimizer.masks[layer]), mask, err_msg=str(t))
        for layer, values in held(optimizer, "salience").items():
            expected = reference.salience[layer]
            np.testing.assert_allclose(logical(values), expected, rtol=1e-4, atol=1e-9)
            assert not logical(values)[~reference.masks[layer]].any()
        assert_dropped_are_fresh(optimizer)
    assert run_state(optimizer)["updates"] == reference.updates
    return optimizer


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_smoothed_salience_is_the_oracles_after_every_step(name, state):
    optimizer = run_beside_oracle(name, state)
    assert len(optimizer.history) == 5
    assert run_state(optimizer)["largest"] == optimizer.history[0].fraction


@given(
    decay=st.floats(0, 0.99),
    density=st.floats(0.05, 0.7),
    delta_t=st.integers(1, 6),
    seed=st.integers(0, 2**31),
)
def test_observer_works_with_all_settings(decay, density, delta_t, seed):
    run_beside_oracle(
        "SGD", "auto", 12, decay, density=density, delta_t=delta_t, seed=seed, total_steps=14
    )


def test_state_is_kept_for_layers_that_can_move_until_masks_stop():
    model = make()
    optimizer = wrap(model, method="smoothed-salience", init="uniform")
    train(model, optimizer, 36)
    moving = {layer.name for layer in optimizer.layers if not layer.is_dense}
    seen = held(optimizer, "seen")
    assert seen.keys() == moving < set(SPARSE_NAMES)
    # Step 30 is the last step before an update can come.
    assert {int(count) for count in seen.values()} == {30}
    dense = next(layer for layer in optimizer.layers if layer.is_dense)
    update = optimizer._updater._about(37)
    with pytest.raises(ValueError, match=rf"'{dense.name}' has no state: .*stays dense"):
        update.layer_state(dense)


def test_state_begins_at_construction_even_if_the_first_layer_has_none():
    @dataclass(frozen=True)
    class Anchored(DropGrow):
        name = "anchored"
        needs_gradient = False

        def initial_layer_state(self, layer):
            return {} if layer.is_dense else {"first": layer.weight.detach().clone()}

        def grow_scores(self, layer, update):
            return update.random_scores(layer)

    model = make()
    optimizer = wrap(model, method=Anchored(), init="uniform")
    assert optimizer.layers[0].is_dense
    begun = {layer.name: layer.weight.detach().clone() for layer in optimizer.layers[1:]}
    train(model, optimizer, 3)
    first = held(optimizer, "first")
    assert first.keys() == begun.keys()
    for name, weight in begun.items():
        assert torch.equal(first[name], weight)


def test_gradients_are_dense_only_where_they_are_asked_for():
    model = make()
    optimizer = wrap(model, method="frequent-gradient")
    for t in range(1, 36):
        dense = dense_gradients(model, t)
        backward(model, t)
        for layer in optimizer.layers:
            expected = dense[layer.name] if t <= 30 else dense[layer.name] * layer.mask
            assert torch.equal(layer.weight.grad, expected), (layer.name, t)
        optimizer.step()
        assert_dropped_are_fresh(optimizer)


def test_observer_sees_zeros_where_weights_are_not_live_on_update_steps_too():
    seen = []

    @dataclass(frozen=True)
    class Looking(SmoothedSalience):
        def observe(self, layer, gradient, update):
            seen.append((update.step, bool(gradient[~layer.mask].any())))

    model = make()
    train(model, wrap(model, method=Looking()), 11)
    assert {step for step, _ in seen} == set(range(1, 12))
    assert not any(dense for _, dense in seen)


def test_closure_is_observed_once_and_what_is_not_finite_never():
    model = make()
    optimizer = wrap(model, method="smoothed-salience")

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 1)
        loss.backward()
        return loss

    optimizer.step(closure)
    before = held(optimizer, "salience")
    backward(model, 2)
    model.fc1.weight.grad[0, 0] = float("inf")
    optimizer.step()
    assert {int(count) for count in held(optimizer, "seen").values()} == {1}
    for name, values in held(optimizer, "salience").items():
        assert torch.equal(values, before[name])


@pytest.mark.parametrize("stop", [7, 10, 12, 23])
@pytest.mark.parametrize("method", [SmoothedSalience(), FrequentGradient()])
def test_resumed_run_is_the_uninterrupted_one_to_the_last_bit(method, stop, state, tmp_path):
    model = make()
    optimizer = resuming.wrap(model, method=method, state=state)
    train(model, optimizer, stop)
    torch.manual_seed(77)
    fresh_model, fresh = resumed(
        model, saved_and_loaded(optimizer, tmp_path), method=method, state=state
    )
    train(model, optimizer, 24 - stop, start=stop)
    train(fresh_model, fresh, 24 - stop, start=stop)
    assert_same_run(model, optimizer, fresh_model, fresh)
    assert run_state(optimizer) == run_state(fresh)
    for name in method.initial_layer_state(optimizer.layers[0]):
        here, there = held(optimizer, name), held(fresh, name)
        assert all(torch.equal(values, there[layer]) for layer, values in here.items())
    assert len(fresh.history) >= 3


@pytest.mark.parametrize("how", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_train_alike_and_independently(how):
    model = make()
    inner = build("AdamW", model.parameters())
    optimizer = SparseOptimizer(inner, model, method="smoothed-salience", **SETTINGS)
    train(model, optimizer, 9)
    other_model, other = how((model, optimizer))
    train(model, optimizer, 15, start=9)
    train(other_model, other, 15, start=9)
    assert_same_weights(model, other_model)
    assert optimizer.history == other.history
    assert run_state(optimizer) == run_state(other)


def test_state_follows_the_model_to_another_device_and_memory_format(device):
    model = make()
    optimizer = wrap(model, method="smoothed-salience")
    train(model, optimizer, 7)
    model.to(device, memory_format=torch.channels_last)
    train(model, optimizer, 5, start=7)
    for layer, values in held(optimizer, "salience").items():
        assert values.device.type == device
        assert not values[~optimizer.masks[layer]].any()
    assert {int(count) for count in held(optimizer, "seen").values()} == {12}


def test_layers_that_are_added_begin_and_layers_that_leave_are_forgotten():
    model = make()
    head = model.fc2
    optimizer = wrap(model, method="smoothed-salience")
    train(model, optimizer, 3)
    optimizer.param_groups[0]["params"] = [
        p for p in optimizer.param_groups[0]["params"] if all(p is not q for q in head.parameters())
    ]
    model.fc2 = torch.nn.Linear(16, 5)
    optimizer.add_param_group({"params": list(model.fc2.parameters())})
    train(model, optimizer, 4, start=3)
    seen = {name: int(count) for name, count in held(optimizer, "seen").items()}
    assert seen == {"conv1.weight": 7, "conv2.weight": 7, "fc1.weight": 7, "fc2.weight": 4}


@pytest.mark.parametrize(
    ("declared", "run", "words"),
    [
        ({}, {}, r"keeps nothing for layer .*, but the checkpoint has 'salience' of shape"),
        ({"other": 0}, {"updates": 0, "largest": 0.0}, r"keeps 'other' of shape \(\) for layer"),
        (None, {"updates": 0}, r"keeps 'updates' for the run, but .* has 'largest', 'updates'"),
    ],
)
def test_checkpoint_of_another_version_of_the_method_is_refused_whole(declared, run, words):
    @dataclass(frozen=True)
    class Changed(SmoothedSalience):
        follows_mask = ()

        def initial_layer_state(self, layer):
            if declared is None:
                return super().initial_layer_state(layer)
            return {name: torch.tensor(value) for name, value in declared.items()}

        def initial_run_state(self):
            return run

        def observe(self, layer, gradient, update):
            pass

        def moves(self, layers, update):
            return DropGrow.moves(self, layers, update)

    model, other_model = make(), make(seed=3)
    optimizer = wrap(model, "AdamW", method="smoothed-salience")
    other = wrap(other_model, "AdamW", method=Changed())
    train(model, optimizer, 4)
    train(other_model, other, 2)
    before = snapshot(other, other_model)
    with pytest.raises(CheckpointError, match=words):
        other.load_state_dict(optimizer.state_dict())
    assert_unchanged(before, snapshot(other, other_model))


def with_state(**functions):
    """A method with this observer or initial state."""
    return dataclass(frozen=True)(type("Own", (SmoothedSalience,), {"name": "own", **functions}))()


@pytest.mark.parametrize(
    ("functions", "error", "words"),
    [
        (
            {"initial_layer_state": lambda self, layer: layer.weight},
            TypeError,
            r"initial_layer_state\(\) of method 'own' for layer 'conv1.weight' returned Param",
        ),
        (
            {"initial_layer_state": lambda self, layer: {"salience": torch.zeros(3)}},
            ValueError,
            r"follows_mask of method 'own'.*'salience'.*shape \(8, 3, 3, 3\).*shape \(3,\)",
        ),
        (
            {"follows_mask": ("age",)},
            ValueError,
            r"follows_mask of method 'own' for .* names 'age'.* is not in it",
        ),
        (
            {"initial_run_state": lambda self: {"seen": []}},
            TypeError,
            r"run_state\['seen'\] of method 'own' can't be list",
        ),
        (
            {"initial_run_state": lambda self: None},
            TypeError,
            r"initial_run_state\(\) of method 'own' returned NoneType",
        ),
    ],
)
def test_invalid_declaration_is_refused_at_construction(functions, error, words):
    with pytest.raises(error, match=words):
        wrap(make(), method=with_state(**functions))


def assign(where, name, value):
    def observe(self, layer, gradient, update):
        kept = update.run_state if where == "run" else update.layer_state(layer)
        kept[name] = value

    return observe


@pytest.mark.parametrize(
    ("observe", "error", "words"),
    [
        (assign("layer", "age", torch.zeros(3)), KeyError, "keeps no 'age': .* 'salience', 'seen'"),
        (
            assign("layer", "salience", torch.zeros(3)),
            ValueError,
            r"layer_state\['salience'\] of method 'own' for layer '.*' .* was assigned \(3,\)",
        ),
        (assign("layer", "seen", 4), ValueError, r"shape \(\), but was assigned 4"),
        (assign("run", "age", 3), KeyError, "'own' keeps no 'age': .* 'updates', 'largest'"),
        (assign("run", "updates", [3]), TypeError, r"run_state\['updates'\] .* can't be list"),
    ],
)
def test_undeclared_state_is_refused(observe, error, words):
    model = make()
    optimizer = wrap(model, method=with_state(observe=observe))
    with pytest.raises(error, match=words):
        train(model, optimizer, 1)


def test_measured_cost_counts_every_dense_gradient_that_is_observed():
    model = make()
    optimizer = wrap(model, method="frequent-gradient", init="er")
    inputs, total = torch.zeros(1, 3, 6, 6), 0.0
    for t in range(1, 41):
        report = optimizer.flops(model, inputs)
        sparse, dense = report.inference_sparse, report.inference_dense
        total += 2 * sparse + dense if t <= 30 else 3 * sparse
        train(model, optimizer, 1, start=t - 1)
    assert optimizer.flops(model, inputs).train_measured == pytest.approx(total / 40)


@pytest.mark.skipif(not kernels.available(), reason="no kernels")
@pytest.mark.parametrize("method", ["frequent-gradient", "smoothed-salience"])
def test_speed_up_says_that_an_observer_of_dense_gradients_stays_dense(method):
    model = make()
    optimizer = wrap(model, method=method)
    handle = speed_up(model, optimizer)
    train(model, optimizer, 2)
    assert (f"'{method}' reads the gradients of all weights" in handle.report) == (
        method == "frequent-gradient"
    )
