"""A method made of a drop score, a grow score and a schedule, without a class."""

import numpy as np
import pytest
import torch

from sparseopt import Accumulated, Compose, RigL, Smoothed, SparseOptimizer, UpdateSchedule
from tests.support.catalogue import build
from tests.support.looking import assert_same_weights, masks_of
from tests.support.nets import SPARSE_NAMES, make
from tests.support.training import dense_gradients, train, train_step
from tests.support.wrapping import settings_with, wrap

SETTINGS = settings_with(delta_t=4)


def run(method, steps=30, **changes):
    model = make()
    settings = {**SETTINGS, **changes}
    inner = build("SGD", model.parameters())
    optimizer = SparseOptimizer(inner, model, method=method, **settings)
    train(model, optimizer, steps)
    return model, optimizer


@pytest.mark.parametrize(
    ("composed", "known"),
    [
        (Compose(), "rigl"),
        (Compose(grow="random"), "set"),
        (Compose(grow="momentum", gradient=Smoothed(0.9)), RigL(gradient=Smoothed(0.9))),
        (Compose(regrow="zero"), RigL(regrow="zero")),
        (Compose(grow=lambda layer, update: layer.weight.grad.abs()), "rigl"),
    ],
)
def test_known_methods_composed_of_scores_equal_the_originals(composed, known):
    model, optimizer = run(composed)
    other_model, other = run(known)
    assert_same_weights(model, other_model)
    assert optimizer.history == other.history
    assert len(optimizer.history) == 7


def test_drop_score_of_ones_own_decides_what_drops():
    def far_from_a_tenth(layer, update):
        return -(layer.weight.abs() - 0.1).abs()

    model, optimizer = run(Compose(drop=far_from_a_tenth, grow="random", regrow="never"), 3)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    old = {name: mask.clone() for name, mask in optimizer.masks.items()}
    train_step(model, optimizer, 4)
    for name in SPARSE_NAMES:
        dropped, kept = old[name] & ~optimizer.masks[name], old[name] & optimizer.masks[name]
        if dropped.any():
            distance = (weights[name].abs() - 0.1).abs()
            assert distance[dropped].min() >= distance[kept].max()


def test_salience_is_weight_times_gradient():
    model, optimizer = run(Compose(drop="salience", regrow="never"), 3)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients, old = dense_gradients(model, 4), masks_of(optimizer)
    train_step(model, optimizer, 4)
    for name, mask in masks_of(optimizer).items():
        salience = (weights[name] * gradients[name]).abs().flatten().numpy()
        lost, kept = old[name] & ~mask, old[name] & mask
        if lost.any():
            assert salience[lost].max() <= salience[kept].min()


def test_momentum_is_the_magnitude_of_the_smoothed_gradients_of_live_weights():
    memory = Smoothed(0.8, dense=False)
    model, optimizer = run(Compose(drop="momentum", gradient=memory, regrow="never"), 0)
    smoothed = dict.fromkeys(SPARSE_NAMES, 0.0)
    old = masks_of(optimizer)
    for step in range(1, 5):
        gradients = dense_gradients(model, step)
        for name in SPARSE_NAMES:
            gradient = gradients[name].flatten().numpy() * old[name]
            smoothed[name] = 0.8 * smoothed[name] + 0.2 * gradient
        train_step(model, optimizer, step)
    assert [record.step for record in optimizer.history] == [4]
    for name, mask in masks_of(optimizer).items():
        lost, kept = old[name] & ~mask, old[name] & mask
        momentum = abs(smoothed[name])
        if not old[name].all():
            assert lost.any()
            assert momentum[lost].max() <= momentum[kept].min()


def test_schedule_of_its_own_takes_the_place_of_the_optimizers():
    schedule = UpdateSchedule(delta_t=3, alpha=0.5, t_end=10, decay="linear")
    _, optimizer = run(Compose(schedule=schedule), 20)
    assert [record.step for record in optimizer.history] == [3, 6, 9]
    fractions = [record.fraction for record in optimizer.history]
    np.testing.assert_allclose(fractions, [0.35, 0.2, 0.05])


def test_any_object_that_says_when_and_how_much_is_a_schedule():
    class Twice:
        def is_update(self, step):
            return step in {5, 37}

        def fraction(self, step):
            return 0.25

    # Without a horizon nothing is warned about: the schedule knows its own end.
    _, optimizer = run(
        Compose(schedule=Twice(), grow="momentum", gradient=Accumulated(3)), 40, total_steps=None
    )
    assert [(r.step, r.fraction) for r in optimizer.history] == [(5, 0.25), (37, 0.25)]
    assert all(record.grown > 0 for record in optimizer.history)


def test_label_is_its_name_in_a_checkpoint():
    _, optimizer = run(Compose(label="mine"), 6)
    other_model = make()
    other = wrap(other_model, method=Compose(), **SETTINGS)
    with pytest.raises(ValueError, match="'mine'"):
        other.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"drop": "magnitud"}, ValueError, "did you mean 'magnitude'"),
        ({"grow": 3}, TypeError, "grow=3"),
        ({"grow": "momentum"}, TypeError, "gradient="),
        ({"grow": "magnitude"}, ValueError, "grow='magnitude' .* gradient, momentum, random"),
        ({"grow": "salience", "regrow": "never"}, ValueError, "grow='salience'"),
        (
            {"grow": "momentum", "gradient": Smoothed(0.9, dense=False)},
            ValueError,
            r"gradient=Smoothed\(dense=False, beta=0.9\) .* dense=True",
        ),
    ],
)
def test_object_that_is_not_a_score_is_refused(settings, error, words):
    with pytest.raises(error, match=words):
        Compose(**settings)


def test_scores_of_another_shape_are_refused_by_the_layers_name():
    with pytest.raises(ValueError, match=r"grow= .*shape \(1,\).*conv"):
        run(Compose(grow=lambda layer, update: torch.ones(1)), 4)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"grow": "random"},
        {"grow": "momentum", "gradient": Smoothed(0.9)},
        {"drop": "momentum", "gradient": Smoothed(0.9, dense=False)},
        {"drop": "salience"},
    ],
)
def test_masks_move_by_every_score(settings):
    _, optimizer = run(Compose(**settings), 0)
    before = masks_of(optimizer)
    _, optimizer = run(Compose(**settings))
    for name, mask in masks_of(optimizer).items():
        if not before[name].all():
            assert (mask & ~before[name]).any(), name


def test_function_to_grow_by_is_taken_even_if_all_that_drops_comes_back():
    method = Compose(grow=lambda layer, update: layer.weight.abs())
    _, untrained = run(method, 0)
    _, optimizer = run(method)
    assert len(optimizer.history) == 7
    for name, mask in masks_of(optimizer).items():
        np.testing.assert_array_equal(mask, masks_of(untrained)[name])
