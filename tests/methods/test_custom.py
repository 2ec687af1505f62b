"""A user's own method: a subclass and a decorator."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

import sparseopt
from sparseopt import DropGrow, Method, SparseOptimizer, available_methods, register_method
from sparseopt.methods import registry
from tests.support.catalogue import build
from tests.support.looking import assert_dropped_are_fresh, masks_of
from tests.support.nets import make
from tests.support.training import train

SETTINGS = {"density": 0.2, "delta_t": 4, "total_steps": 60}


@pytest.fixture(autouse=True)
def _registry_as_it_was(monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


def own_method():
    @register_method
    @dataclass(frozen=True)
    class FromTheEnd(DropGrow):
        """Grows the weights of the highest index."""

        name = "from-the-end"

        def grow_scores(self, layer, update):
            return torch.arange(layer.numel).reshape(layer.weight.shape)

    return FromTheEnd


def test_method_is_found_by_its_name(state):
    own_method()
    assert "from-the-end" in available_methods()
    model = make()
    optimizer = SparseOptimizer(
        build("AdamW", model.parameters()), model, method="from-the-end", state=state, **SETTINGS
    )
    before = masks_of(optimizer)
    train(model, optimizer, 4, after=lambda _: assert_dropped_are_fresh(optimizer))
    fraction = optimizer.history[-1].fraction
    for layer in optimizer.layers:
        if layer.density == 1:
            continue
        k = int(fraction * layer.live)
        old, new = before[layer.name], masks_of(optimizer)[layer.name]
        dead_at_the_end = np.flatnonzero(~old)[-k:]
        assert new[dead_at_the_end].sum() >= k - old.sum()
        assert new[-1]
    train(model, optimizer, 40, start=4, after=lambda _: assert_dropped_are_fresh(optimizer))
    for layer in optimizer.layers:
        assert layer.live == layer.target


def test_method_goes_through_a_checkpoint():
    own_method()
    model = make()
    optimizer = SparseOptimizer(
        build("SGD", model.parameters()), model, method="from-the-end", **SETTINGS
    )
    train(model, optimizer, 10)
    fresh_model = make(seed=4)
    fresh = SparseOptimizer(
        build("SGD", fresh_model.parameters()), fresh_model, method="from-the-end", **SETTINGS
    )
    fresh.load_state_dict(optimizer.state_dict())
    for name, mask in optimizer.masks.items():
        assert torch.equal(mask, fresh.masks[name])


def test_dropping_by_another_score():
    @dataclass(frozen=True)
    class DropLargest(DropGrow):
        name = "drop-largest"

        def drop_scores(self, layer, update):
            return -layer.gather(layer.weight).abs()

        def grow_scores(self, layer, update):
            return update.random_scores(layer)

    model = make()
    optimizer = SparseOptimizer(
        build("SGD", model.parameters()), model, method=DropLargest(regrow="never"), **SETTINGS
    )
    train(model, optimizer, 3)
    before = {layer.name: layer.weight.detach().clone() for layer in optimizer.layers}
    old = {name: mask.clone() for name, mask in optimizer.masks.items()}
    train(model, optimizer, 1, start=3)
    for layer in optimizer.layers:
        dropped, kept = old[layer.name] & ~layer.mask, old[layer.name] & layer.mask
        if dropped.any():
            magnitude = before[layer.name].abs()
            assert magnitude[dropped].min() >= magnitude[kept].max()


def test_error_in_a_method_changes_nothing():
    @dataclass(frozen=True)
    class Broken(DropGrow):
        name = "broken"

        def grow_scores(self, layer, update):
            if layer.name == "fc1.weight":
                raise ZeroDivisionError("of my own making")
            return update.random_scores(layer)

    model = make()
    optimizer = SparseOptimizer(
        build("SGD", model.parameters()), model, method=Broken(), **SETTINGS
    )
    train(model, optimizer, 3)
    before = masks_of(optimizer)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(ZeroDivisionError, match="of my own making"):
        train(model, optimizer, 1, start=3)
    for name, mask in masks_of(optimizer).items():
        np.testing.assert_array_equal(mask, before[name])
    for name, p in model.named_parameters():
        assert torch.equal(p, weights[name])


def test_class_that_is_not_a_method_is_not_registered():
    with pytest.raises(TypeError, match="int"):
        register_method(int)
    with pytest.raises(TypeError, match="Method"):
        register_method(Method)


def test_name_that_is_taken_is_refused():
    @dataclass(frozen=True)
    class Impostor(DropGrow):
        name = "rigl"

        def grow_scores(self, layer, update):
            return update.random_scores(layer)

    with pytest.raises(ValueError, match="rigl"):
        register_method(Impostor)
    assert isinstance(registry.get_method("rigl"), sparseopt.RigL)


def test_all_methods_are_reached_by_name():
    names = {
        "static",
        "set",
        "rigl",
        "rigl-sg",
        "rigl-sm",
        "snfs",
        "mest",
        "n:m",
        "granet",
        "pruning",
        "srigl",
        "rigl-struct",
    }
    assert names <= set(available_methods())
    assert all(registry.get_method(name).name == name for name in names)


class Plain(DropGrow):
    """Attributes of a valid class; a test changes one of them."""

    name = "plain"

    def grow_scores(self, layer, update):
        return update.random_scores(layer)


def plain(*, fields=(), **attributes):
    annotations = dict(fields)
    body = {"__annotations__": annotations, "__module__": __name__, **attributes}
    return dataclass(frozen=True)(type("Own", (Plain,), body))


def not_decorated():
    return type("Own", (Plain,), {})


def without_growth():
    return dataclass(frozen=True)(type("Own", (DropGrow,), {"name": "own"}))


def refusing(self):
    raise ValueError("strength must be given")


@pytest.mark.parametrize(
    ("make_class", "words"),
    [
        (not_decorated, r"Own: it is not a dataclass\. Write @register_method above @dataclass"),
        (without_growth, r"Own: .* lacks grow_scores\(\)"),
        (lambda: plain(name=""), "name='' must be a non-empty string"),
        (lambda: plain(name=3), "name=3 must be of type str"),
        (lambda: plain(name="own", fields={"name": str}), "name is a field of the dataclass"),
        (lambda: plain(needs_dense_gradient=1), "needs_dense_gradient=1 must be of type bool"),
        (
            lambda: plain(fields={"needs_dense_gradient": bool}, needs_dense_gradient=True),
            "needs_dense_gradient is a field of the dataclass",
        ),
        (
            lambda: plain(needs_dense_gradients=True),
            "needs_dense_gradients is not a flag; did you mean 'needs_dense_gradient'",
        ),
        (lambda: plain(follows_mask="age"), "follows_mask='age' must be of type tuple"),
        (
            lambda: plain(follows_mask=("age",)),
            r"follows_mask=\('age',\) has no effect without initial_layer_state\(\)",
        ),
        (
            lambda: plain(observes_dense_gradient=True),
            r"observes_dense_gradient=True has no effect without observe\(\)",
        ),
        (
            lambda: plain(grow_scores=lambda self, layer: layer.weight),
            r"grow_scores\(self, layer\) must take \(self, layer, update\)",
        ),
        (
            lambda: plain(observe=lambda self, weight, gradient: None),
            r"observe\(.*\) must take \(self, layer, gradient, update\)",
        ),
        (
            lambda: plain(fields={"memories": dict}, memories=field(default_factory=dict)),
            "its field 'memories' is a dict, which may change: .* initial_layer_state",
        ),
        (lambda: plain(__post_init__=refusing), r"Own\(\) with its defaults fails: strength must"),
    ],
)
def test_registered_class_with_wrong_flags_or_fields_is_refused(make_class, words):
    with pytest.raises(TypeError, match=words):
        register_method(make_class())
    assert "plain" not in available_methods()


def test_field_without_a_default_is_refused():
    @dataclass(frozen=True)
    class Own(Plain):
        strength: float

    with pytest.raises(TypeError, match="its field 'strength' has no default"):
        register_method(Own)


def test_method_with_settings_and_arguments_of_its_own_is_registered():
    @register_method
    @dataclass(frozen=True)
    class Own(Plain):
        name = "own"
        strength: float = 1.0

        def grow_scores(self, layer, update, *, power=1.0):
            return update.random_scores(layer) ** power

    assert registry.get_method("own") == Own(strength=1.0)
