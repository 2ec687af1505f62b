"""At density 1 the wrapper equals every inner optimizer, to the last bit."""

import pytest
import torch

from sparseopt import SparseOptimizer
from tests.support.catalogue import build, implementations, model_for, torch_optimizers
from tests.support.looking import assert_same_weights
from tests.support.training import train

STEPS = 25

EVERY_OPTIMIZER = [
    pytest.param(name, implementation, id="-".join([name, *implementation]))
    for name in torch_optimizers()
    for implementation in implementations(name)
]


def assert_same_inner_state(wrapped, plain_optimizer, model, plain_model):
    for mine, theirs in zip(model.parameters(), plain_model.parameters(), strict=True):
        left, right = wrapped.state.get(mine, {}), plain_optimizer.state.get(theirs, {})
        assert left.keys() == right.keys()
        for key, value in right.items():
            if torch.is_tensor(value):
                assert torch.equal(left[key], value), key
                assert left[key].dtype == value.dtype
            else:
                assert str(left[key]) == str(value), key


def assert_identical_run(name, implementation, *, dtype=torch.float32, device="cpu", **settings):
    model, plain_model = (model_for(name, dtype=dtype, device=device) for _ in range(2))
    plain_optimizer = build(name, plain_model.parameters(), **implementation)
    inner = build(name, model.parameters(), **implementation)
    wrapped = SparseOptimizer(inner, model, density=1.0, delta_t=5, total_steps=STEPS, **settings)
    train(plain_model, plain_optimizer, STEPS)
    train(model, wrapped, STEPS)
    assert_same_weights(model, plain_model)
    assert_same_inner_state(wrapped, plain_optimizer, model, plain_model)
    assert wrapped.density == 1.0
    assert wrapped.history == []


@pytest.mark.parametrize(("name", "implementation"), EVERY_OPTIMIZER)
def test_density_one_is_the_plain_optimizer(name, implementation):
    assert_identical_run(name, implementation)


@pytest.mark.parametrize("name", torch_optimizers())
def test_density_one_is_the_plain_optimizer_in_bf16(name):
    if name == "LBFGS":
        pytest.skip("a line of bf16 gradients tells LBFGS nothing: it stops at once")
    assert_identical_run(name, {}, dtype=torch.bfloat16)


@pytest.mark.parametrize("method", ["static", "set", "rigl", "pruning"])
@pytest.mark.parametrize("init", ["erk", "er", "uniform"])
def test_density_one_moves_no_mask_by_any_method(method, init, state):
    assert_identical_run("SGD", {}, method=method, init=init, state=state)


def test_density_one_on_every_device(device):
    if device == "cuda":
        torch.use_deterministic_algorithms(False)
    assert_identical_run("SGD", {}, device=device)


def test_list_of_optimizers_is_torchs_own():
    """Guards the parametrisation: it contains the classes of this torch version."""
    assert {"SGD", "Adam", "AdamW", "Adagrad", "LBFGS", "RMSprop", "Rprop"} <= set(
        torch_optimizers()
    )
    assert "SparseAdam" not in torch_optimizers()
    assert "Optimizer" not in torch_optimizers()
