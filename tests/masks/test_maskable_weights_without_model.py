"""Without the model: which parameters are sparse, and what they are called."""

import logging
from functools import partial

import torch

from sparseopt import SparseOptimizer
from tests.support import wrapping
from tests.support.catalogue import build
from tests.support.looking import names
from tests.support.nets import SPARSE_NAMES, make
from tests.support.training import train
from tests.support.wrapping import settings_with

SETTINGS = settings_with(density=0.25, delta_t=3, init="er")
wrap = partial(wrapping.wrap, name="AdamW", **SETTINGS)


def test_every_matrix_is_sparse_in_group_order_without_a_model():
    """Param groups give order and names; normalisation weights of two dimensions count too."""
    model = make()
    inner = torch.optim.SGD(
        [
            {"params": [model.fc2.bias, model.fc2.weight]},
            {"params": [model.conv1.weight, model.conv1.bias, model.fc1.weight]},
        ],
        lr=0.05,
    )
    optimizer = SparseOptimizer(inner, **SETTINGS)
    assert names(optimizer) == ["0.1", "1.0", "1.2"]
    weights = [layer.weight for layer in optimizer.layers]
    assert [
        w is e
        for w, e in zip(
            weights, [model.fc2.weight, model.conv1.weight, model.fc1.weight], strict=True
        )
    ] == [True] * 3


def test_names_come_from_named_parameters_without_a_model():
    model = make()
    optimizer = SparseOptimizer(torch.optim.SGD(model.named_parameters(), lr=0.05), **SETTINGS)
    assert names(optimizer) == list(SPARSE_NAMES)


def test_frozen_parameters_stay_dense_without_a_model():
    model = make()
    model.conv1.weight.requires_grad_(False)
    optimizer = SparseOptimizer(torch.optim.SGD(model.parameters(), lr=0.05), **SETTINGS)
    assert all(layer.weight is not model.conv1.weight for layer in optimizer.layers)
    assert model.conv1.weight.ne(0).all()


def test_sparse_weights_are_logged_once_without_a_model(caplog):
    model = make()
    with caplog.at_level(logging.INFO, logger="sparseopt"):
        optimizer = SparseOptimizer(torch.optim.SGD(model.parameters(), lr=0.05), **SETTINGS)
        train(model, optimizer, 4)
    records = [r for r in caplog.records if r.name.startswith("sparseopt")]
    assert len(records) == 1
    for layer in optimizer.layers:
        assert layer.name in records[0].getMessage()


def test_training_with_and_without_a_model_is_alike(state):
    """Where the same weights are sparse in the same order, the model changes nothing."""
    model, other = make(), make()
    with_model = wrap(model, state=state)
    without = SparseOptimizer(build("AdamW", other.parameters()), state=state, **SETTINGS)
    assert len(with_model.layers) == len(without.layers)
    train(model, with_model, 10)
    train(other, without, 10)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
