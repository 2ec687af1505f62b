"""SET grows at random, from the generator that made the masks."""

import numpy as np
import pytest
import torch

from sparseopt import SparseOptimizer
from tests.support.catalogue import build
from tests.support.looking import masks_of
from tests.support.nets import SPARSE_NAMES, make
from tests.support.training import train

SETTINGS = {"method": "set", "density": 0.2, "delta_t": 3, "total_steps": 60}


def run(seed, steps=20, *, torch_seed=0, **form):
    torch.manual_seed(torch_seed)
    model = make(**form)
    optimizer = SparseOptimizer(build("SGD", model.parameters()), model, seed=seed, **SETTINGS)
    train(model, optimizer, steps)
    return masks_of(optimizer)


def same(left, right):
    return all((left[name] == right[name]).all() for name in SPARSE_NAMES)


def test_growth_is_deterministic_for_a_seed():
    assert same(run(4), run(4, torch_seed=99))
    assert not same(run(4), run(5))


def test_growth_draws_nothing_from_torchs_own_generator():
    model = make()
    optimizer = SparseOptimizer(build("SGD", model.parameters()), model, seed=1, **SETTINGS)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(model, optimizer, 9)
    assert torch.equal(torch.rand(3), expected)


def test_growth_is_uniform_over_the_candidates():
    """Over many updates of one layer every dropped weight grows equally often."""
    model = torch.nn.Sequential(torch.nn.Linear(10, 10, bias=False))
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model,
        method="set",
        density=0.5,
        init="er",
        delta_t=1,
        alpha=0.2,
        decay="constant",
        t_end=10**6,
        regrow="never",
        seed=0,
    )
    grown, candidates = np.zeros(100), np.zeros(100)
    for _ in range(600):
        before = optimizer.masks["0.weight"].flatten().numpy().copy()
        with torch.no_grad():
            model[0].weight.copy_(torch.rand(10, 10) * optimizer.masks["0.weight"])
        model[0].weight.grad = torch.zeros(10, 10)
        optimizer.step()
        after = optimizer.masks["0.weight"].flatten().numpy()
        grown += after & ~before
        candidates += ~before
    rate = grown / candidates
    assert grown.sum() == 600 * 10
    assert rate.mean() == pytest.approx(0.2, abs=0.005)
    assert abs(rate - 0.2).max() < 5 * np.sqrt(0.2 * 0.8 / 300)
