"""An inner optimizer that is wrapped again, and copies at unusual moments."""

import copy
import pickle
from functools import partial

import pytest
import torch

from sparseopt import SparseOptimizer
from tests.support import wrapping
from tests.support.catalogue import build
from tests.support.looking import assert_dropped_are_fresh, assert_same_weights
from tests.support.nets import make
from tests.support.training import backward, train
from tests.support.wrapping import settings_with

COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda pair: pickle.loads(pickle.dumps(pair)),
}

wrap = partial(wrapping.wrap, name="AdamW")


@pytest.mark.filterwarnings("ignore:the model was sparse before")
@pytest.mark.parametrize("name", ["AdamW", "Adafactor"])
def test_second_wrapper_replaces_the_first(name, state):
    """A notebook's cell runs twice, with another density."""
    if (name, state) == ("Adafactor", "live"):
        state = "auto"
    model = make()
    inner = build(name, model.parameters())
    first = SparseOptimizer(inner, model, **settings_with(density=0.3, state=state))
    train(model, first, 3)
    second = SparseOptimizer(inner, model, **settings_with(density=0.1, state=state))
    train(model, second, 12)
    assert second.density == pytest.approx(0.1, abs=0.01)
    assert_dropped_are_fresh(second)
    with pytest.raises(RuntimeError, match="was detached"):
        first.step()
    first.detach()
    train(model, second, 3, start=12)
    assert_dropped_are_fresh(second)


def test_wrapper_that_is_refused_leaves_the_one_before():
    model = make()
    inner = build("AdamW", model.parameters())
    first = SparseOptimizer(inner, model, **settings_with(density=0.3))
    train(model, first, 3)
    with pytest.raises(ValueError, match="density"):
        SparseOptimizer(inner, model, **settings_with(density=2.0))
    train(model, first, 3, start=3)
    assert_dropped_are_fresh(first)


@pytest.mark.parametrize("how", COPIES)
def test_copy_with_a_frozen_layer_masks_it_once_it_trains_again(how, state):
    model = make()
    optimizer = wrap(model, state=state)
    train(model, optimizer, 3)
    model.fc1.weight.requires_grad_(False)
    other_model, other = COPIES[how]((model, optimizer))
    assert not other_model.fc1.weight.requires_grad
    train(model, optimizer, 3, start=3)
    train(other_model, other, 3, start=3)
    assert_same_weights(model, other_model)
    other_model.fc1.weight.requires_grad_(True)
    backward(other_model, 7)
    mask = other.masks["fc1.weight"]
    assert other_model.fc1.weight.grad[mask].any()
    assert not other_model.fc1.weight.grad[~mask].any()


@pytest.mark.parametrize("how", COPIES)
def test_copy_of_a_detached_optimizer_is_detached(how, state):
    model = make()
    optimizer = wrap(model, state=state)
    train(model, optimizer, 3)
    optimizer.detach()
    other_model, other = COPIES[how]((model, optimizer))
    assert not any(p._post_accumulate_grad_hooks for p in other_model.parameters())
    with pytest.raises(RuntimeError, match="was detached"):
        other.step()
    train(model, optimizer.inner, 3, start=3)
    train(other_model, other.inner, 3, start=3)
    assert_same_weights(model, other_model)


def test_shallow_copy_is_refused_and_the_original_goes_on():
    model = make()
    optimizer = wrap(model)
    train(model, optimizer, 3)
    with pytest.raises(TypeError, match=r"copy\.deepcopy"):
        copy.copy(optimizer)
    train(model, optimizer, 3, start=3)
    assert_dropped_are_fresh(optimizer)


def test_sparse_gradients_are_named_where_the_first_step_is_an_update():
    embedding = torch.nn.Embedding(32, 16, sparse=True)
    optimizer = SparseOptimizer(
        torch.optim.SGD(embedding.parameters(), lr=0.1), density=0.2, total_steps=10, delta_t=1
    )
    assert optimizer.is_update_step
    with pytest.raises(TypeError, match="can only be kept dense"):
        embedding(torch.tensor([1, 2])).sum().backward()
