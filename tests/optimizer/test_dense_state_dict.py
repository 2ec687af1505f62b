"""`dense_state_dict()`: a plain optimizer loads it and continues training."""

import copy

import pytest

from sparseopt import SparseOptimizer
from tests.support.catalogue import ELEMENTWISE, build
from tests.support.looking import assert_same_weights
from tests.support.nets import make
from tests.support.resuming import assert_same_run
from tests.support.training import train

SETTINGS = {"density": 0.2, "total_steps": 40, "delta_t": 5, "seed": 3}


@pytest.mark.parametrize("name", [*ELEMENTWISE, "Adafactor"])
def test_plain_optimizer_goes_on_as_the_inner_one_does_after_detach(name):
    model = make()
    optimizer = SparseOptimizer(build(name, model.parameters()), model, **SETTINGS)
    train(model, optimizer, 12)
    other_model = copy.deepcopy(model)
    plain = build(name, other_model.parameters())
    plain.load_state_dict(optimizer.dense_state_dict())
    optimizer.detach()
    train(model, optimizer.inner, 5, start=12)
    train(other_model, plain, 5, start=12)
    assert_same_weights(model, other_model)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_training_goes_on_as_if_it_had_not_been_asked_for(name, state):
    """Also while a plain optimizer trains a copy of the model with the state that it loaded."""
    model, other_model = make(), make()
    settings = {**SETTINGS, "state": state}
    optimizer = SparseOptimizer(build(name, model.parameters()), model, **settings)
    other = SparseOptimizer(build(name, other_model.parameters()), other_model, **settings)
    for start in range(0, 16, 4):
        train(model, optimizer, 4, start=start)
        train(other_model, other, 4, start=start)
        copied = copy.deepcopy(model)
        plain = build(name, copied.parameters())
        plain.load_state_dict(optimizer.dense_state_dict())
        train(copied, plain, 2)
    assert_same_run(model, optimizer, other_model, other)


def test_dense_state_dict_has_only_what_a_plain_optimizer_has(state):
    model = make()
    optimizer = SparseOptimizer(build("AdamW", model.parameters()), model, state=state, **SETTINGS)
    train(model, optimizer, 7)
    plain_model = make()
    plain = build("AdamW", plain_model.parameters())
    train(plain_model, plain, 1)
    dense, expected = optimizer.dense_state_dict(), plain.state_dict()
    assert dense.keys() == expected.keys()
    assert dense["param_groups"] == expected["param_groups"]
    for key, entry in expected["state"].items():
        assert {name: value.shape for name, value in dense["state"][key].items()} == {
            name: value.shape for name, value in entry.items()
        }


def test_weight_that_was_taken_out_is_named():
    model = make()
    optimizer = SparseOptimizer(build("SGD", model.parameters()), model, **SETTINGS)
    optimizer.param_groups[0]["params"].pop(0)
    with pytest.raises(RuntimeError, match=r"conv1\.weight"):
        optimizer.dense_state_dict()
