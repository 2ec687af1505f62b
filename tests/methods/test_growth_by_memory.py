"""Methods that grow by a momentum agree with their oracle, for every momentum."""

import numpy as np
import pytest
import torch

from sparseopt import NM, SNFS, RigLSM, Smoothed, SRigL
from tests import oracle
from tests.support.agreement import run_against_oracle
from tests.support.nets import SPARSE_NAMES, make
from tests.support.oracles import oracle_for
from tests.support.wrapping import settings_with, wrap

STEPS, DELTA_T = 40, 4
SETTINGS = settings_with(total_steps=STEPS, delta_t=DELTA_T, init="er")
UPDATES = 7
BETAS = [0.5, 0.9]


def fed_with_momentum(expected, beta):
    """The oracle of a method that grows by gradient, made to grow by their momentum."""

    class Fed(type(expected)):
        momentum = oracle.Momentum(beta)

        def observe(self, t, gradients):
            self.momentum.feed(gradients)

        def update(self, t, weights, gradients):
            self.observe(t, gradients)
            return super().update(t, weights, {name: self.momentum.m[name] for name in gradients})

    expected.__class__ = Fed
    return expected


@pytest.mark.parametrize("beta", BETAS)
def test_snfs_shares_and_grows_by_the_momentum(beta):
    model = make()
    optimizer = wrap(model, "SGD", method=SNFS(momentum=beta), **SETTINGS)
    expected = oracle_for("snfs", model, **SETTINGS)
    expected.momentum = oracle.Momentum(beta)
    assert run_against_oracle(model, optimizer, expected, STEPS) == UPDATES


@pytest.mark.parametrize("beta", BETAS)
def test_rigl_sm_that_grows_by_a_momentum_of_dense_gradients_is_snfs(beta):
    model = make()
    optimizer = wrap(model, "SGD", method=RigLSM(gradient=Smoothed(beta)), **SETTINGS)
    expected = oracle_for("snfs", model, **SETTINGS)
    expected.momentum = oracle.Momentum(beta)
    assert run_against_oracle(model, optimizer, expected, STEPS) == UPDATES


@pytest.mark.parametrize("beta", BETAS)
def test_srigl_grows_by_a_smoothed_gradient(beta):
    model = make()
    optimizer = wrap(model, "SGD", method=SRigL(gradient=Smoothed(beta)), **SETTINGS)
    expected = fed_with_momentum(oracle_for("srigl", model, **SETTINGS), beta)
    assert run_against_oracle(model, optimizer, expected, STEPS) == UPDATES


@pytest.mark.parametrize("beta", BETAS)
def test_groups_of_n_of_m_grow_by_a_smoothed_gradient(beta):
    model = make()
    settings = {**SETTINGS, "density": 0.5, "init": {}}
    optimizer = wrap(model, "SGD", method=NM(gradient=Smoothed(beta)), **settings)
    numbers = oracle.generator_of(settings["seed"])
    shapes = {name: tuple(model.get_parameter(name).shape) for name in SPARSE_NAMES}
    masks = {}
    for name, shape in shapes.items():
        count = int(np.prod(shape))
        if shape[1] % 4:
            masks[name] = np.ones(count, bool)
        else:
            drawn = torch.rand(count, generator=numbers).numpy()
            masks[name] = oracle.best_n_of_m(drawn, shape, 2, 4)
    plain = oracle.NMOracle(masks, shapes, 4, delta_t=DELTA_T, t_end=STEPS * 3 // 4, alpha=0.3)
    expected = fed_with_momentum(plain, beta)
    assert run_against_oracle(model, optimizer, expected, STEPS) == UPDATES
