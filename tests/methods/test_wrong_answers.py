"""Scores and moves that do not fit raise an error that names everything, before anything moves."""

import warnings
from dataclasses import dataclass

import pytest
import torch

from sparseopt import DropGrow, Method, Move, Rewiring
from tests.support.looking import assert_unchanged, masks_of, snapshot
from tests.support.nets import make
from tests.support.training import train
from tests.support.wrapping import wrap

# The third layer of the small net, so that other layers were decided before it.
LAYER = "fc1.weight"


def at(layer, right, wrong):
    return wrong(layer) if layer.name == LAYER else right(layer)


@dataclass(frozen=True)
class Answering(DropGrow):
    """A correct method; a test replaces one function."""

    name = "answering"

    def grow_scores(self, layer, update):
        return update.random_scores(layer)


def answering(**functions):
    return dataclass(frozen=True)(type("Own", (Answering,), functions))()


def drop(wrong):
    def drop_scores(self, layer, update):
        return at(layer, lambda one: one.gather(one.weight).abs(), wrong)

    return {"drop_scores": drop_scores}


def grow(wrong):
    def grow_scores(self, layer, update):
        return at(layer, lambda one: torch.rand(one.weight.shape), wrong)

    return {"grow_scores": grow_scores}


def move(wrong):
    def moves(self, layers, update):
        return [at(layer, lambda one: Move(1, 1), wrong) for layer in layers]

    return {"moves": moves}


def nan_at_first_live(layer):
    scores = layer.gather(layer.weight).abs()
    scores[0] = torch.nan
    return scores


def nan_where_not_live(layer):
    return torch.where(layer.mask, 1.0, torch.nan)


def rewired(layer, **changes):
    before = layer.mask.reshape(-1)
    return Rewiring(**{"drop": 0, "grow": 0, "survivors": before, "mask": before, **changes})


@pytest.mark.parametrize(
    ("functions", "error", "words"),
    [
        (
            drop(lambda layer: layer.weight.abs()),
            ValueError,
            r"^drop_scores\(\) of method 'answering' for layer 'fc1.weight' returned shape "
            r"\(16, 72\): the weight has shape \(16, 72\) and (\d+) live entries, and "
            r"drop_scores\(\) must return \(\1,\), .*layer\.gather",
        ),
        (
            grow(lambda layer: layer.gather(layer.weight)),
            ValueError,
            r"^grow_scores\(\) of method 'answering' for layer 'fc1.weight' returned shape "
            r"\(\d+,\): .* must return \(16, 72\), one score for each weight",
        ),
        (
            grow(lambda layer: layer.weight.tolist()),
            TypeError,
            r"^grow_scores\(\) .*'fc1.weight' returned list: it must return a tensor",
        ),
        (
            drop(lambda layer: layer.gather(layer.weight).to(torch.complex64)),
            TypeError,
            r"^drop_scores\(\) .*'fc1.weight' returned torch.complex64",
        ),
        (
            drop(nan_at_first_live),
            ValueError,
            r"^drop_scores\(\) of method 'answering' for layer 'fc1.weight' returned NaN for 1 "
            "live weights",
        ),
        (
            grow(nan_where_not_live),
            ValueError,
            r"^grow_scores\(\) of method 'answering' for layer 'fc1.weight' returned NaN for \d+ "
            "weights that are not live, of 1152 scores",
        ),
        (move(lambda layer: Move(layer.live + 1, 0)), ValueError, r"drop=\d+, grow=0 .*'fc1.weig"),
        (move(lambda layer: Move(0, layer.numel)), ValueError, r"grow=1152 .* grow at most \d+"),
        (move(lambda layer: Move(layer.live, 0)), ValueError, "one weight must stay"),
        (move(lambda layer: Move(-1, 1)), ValueError, r"drop=-1, grow=1 for layer 'fc1.weight'"),
        (move(lambda layer: Move(1.5, 1)), TypeError, r"drop=1.5 for layer 'fc1.weight'"),
        (move(lambda layer: (1, 1)), TypeError, r"returned \(1, 1\) for layer 'fc1.weight'"),
        (
            {"moves": lambda self, layers, update: [Move(1, 1)]},
            ValueError,
            r"^moves\(\) of method 'answering' returned 1 of them: .* each of the \d layers",
        ),
        (
            move(lambda layer: rewired(layer, drop=1, survivors=layer.mask)),
            ValueError,
            r"'fc1.weight' returned a Rewiring whose survivors is torch.bool of shape \(16, 72\)",
        ),
        (
            move(lambda layer: rewired(layer, drop=1, mask=layer.mask.reshape(-1).float())),
            ValueError,
            r"whose mask is torch.float32 of shape \(1152,\)",
        ),
        (
            move(lambda layer: rewired(layer, drop=2, grow=1)),
            ValueError,
            r"'fc1.weight' returned a Rewiring whose mask is off by \+1 live weights: with drop=2",
        ),
    ],
)
def test_error_names_method_layer_and_what_would_be_right(functions, error, words, state):
    model = make()
    optimizer = wrap(model, "AdamW", method=answering(**functions), state=state)
    train(model, optimizer, 4)
    before = snapshot(optimizer, model)
    with pytest.raises(error, match=words):
        train(model, optimizer, 1, start=4)
    assert_unchanged(before, snapshot(optimizer, model))


def test_scores_of_weights_that_survive_may_be_nan():
    def grow_scores(self, layer, update):
        return torch.where(layer.mask, torch.nan, update.random_scores(layer))

    model = make()
    optimizer = wrap(model, method=answering(grow_scores=grow_scores))
    train(model, optimizer, 12)
    assert all(record.new for record in optimizer.history)


def by_gradient(self, layer, update):
    return layer.weight.grad.abs()


def by_gradient_and_chance(self, layer, update):
    return layer.weight.grad.square() + 1e-9 * update.random_scores(layer)


@pytest.mark.parametrize("grow_scores", [by_gradient, by_gradient_and_chance])
def test_dense_gradients_that_nobody_asked_for_are_an_error(grow_scores, state):
    model = make()
    method = answering(grow_scores=grow_scores)
    optimizer = wrap(model, "AdamW", method=method, state=state)
    train(model, optimizer, 4)
    before = snapshot(optimizer, model)
    words = r"'answering' reads the gradient of weights .* needs_dense_gradient = True"
    with pytest.raises(ValueError, match=words):
        train(model, optimizer, 1, start=4)
    assert_unchanged(before, snapshot(optimizer, model))
    asked = answering(grow_scores=grow_scores, needs_dense_gradient=True)
    model = make()
    train(model, wrap(model, method=asked), 12)


def by_chance_and_norm(self, layer, update):
    return update.random_scores(layer) * layer.weight.grad.norm()


def by_state(self, layer, update):
    update.layer_state(layer)["calls"] += 1
    return update.random_scores(layer)


@dataclass(frozen=True)
class Counting(Answering):
    def initial_layer_state(self, layer):
        return {"calls": torch.zeros((), dtype=torch.int64)}


def test_check_for_undeclared_dense_gradients_changes_no_run(monkeypatch):
    """Sums over gradients count live weights only; random numbers and state do not change."""

    def run(grow_scores):
        model = make()
        kind = type("Own", (Counting,), {"grow_scores": grow_scores})
        optimizer = wrap(model, method=dataclass(frozen=True)(kind)())
        train(model, optimizer, 12)
        moving = [layer for layer in optimizer.layers if not layer.is_dense]
        counts = [int(optimizer._updater.state.of(layer)["calls"]) for layer in moving]
        return masks_of(optimizer), counts

    functions = (by_chance_and_norm, by_state)
    looked = [run(function) for function in functions]
    name = "sparseopt.optimizer.mask_updates.require_gradients_asked_for"
    monkeypatch.setattr(name, lambda *_: None)
    not_looked = [run(function) for function in functions]
    for (masks, counts), (others, other_counts) in zip(looked, not_looked, strict=True):
        assert all((mask == others[name]).all() for name, mask in masks.items())
        assert counts == other_counts
    assert set(looked[1][1]) == {2}


def test_method_that_fails_in_this_check_trains_as_usual(monkeypatch):
    def grow_scores(self, layer, update):
        if layer.weight.grad.isnan().any():
            raise ZeroDivisionError
        return update.random_scores(layer)

    model = make()
    optimizer = wrap(model, method=answering(grow_scores=grow_scores))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, 6)
    assert optimizer.history[-1].grown


def test_growth_that_is_not_written_says_so():
    @dataclass(frozen=True)
    class NoGrowth(Method):
        name = "no-growth"

        def moves(self, layers, update):
            return [Move(1, 1) for _ in layers]

    model = make()
    optimizer = wrap(model, method=NoGrowth())
    with pytest.raises(TypeError, match="'no-growth' does not grow weights"):
        train(model, optimizer, 5)


@pytest.mark.parametrize(
    ("count", "error", "words"),
    [(0.5, TypeError, "whole number"), (0, ValueError, "from 1 to"), (10**9, ValueError, "from 1")],
)
def test_count_of_live_weights_that_no_layer_can_have_is_an_error(count, error, words):
    method = answering(live_count=lambda self, shape, target: count)
    with pytest.raises(error, match=rf"live_count\(\) of method='answering' returned .*{words}"):
        wrap(make(), method=method)
