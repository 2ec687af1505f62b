"""Every optimizer of the package `pytorch_optimizer` works without registration.

All of them have dense state. They equal a dense run that is masked by hand.
"""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from sparseopt import SparseOptimizer
from tests.support.by_hand import HandMasked, HandMaskedByClosure
from tests.support.looking import assert_dropped_are_fresh, assert_same_weights
from tests.support.nets import MatrixNet, SmallNet, loss_of, make
from tests.support.oracles import oracle_for
from tests.support.resuming import assert_same_run, saved_and_loaded
from tests.support.wrapping import SETTINGS

package = pytest.importorskip("pytorch_optimizer", reason="pytorch_optimizer is not installed")

STEPS = 12

#: Their state has the weight's shape, but not exactly one value for each weight. What becomes of it
#: is tested with all other optimizers in `integration/test_optimizers_equal_masking.py`.
NOT_A_VALUE_A_WEIGHT = frozenset({"alice", "conda", "dash", "soap"})
#: Why these are not tested.
LEFT_OUT = {
    "bsam": "wants a gradient before it has called its closure for the first time",
    "adalomo": "steps inside of backward() and leaves no gradient to a step()",
    "demo": "exchanges gradients between processes, and needs einops",
    "distributedmuon": "exchanges gradients between processes",
    "lomo": "steps inside of backward() and leaves no gradient to a step()",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "adashift": {"keep_num": 2},
    "ranger21": {"num_iterations": 40},
}
#: They take matrices and the rest in groups of their own.
BY_SHAPE = frozenset({"adago", "adamuon", "muon", "muonclip", "normuon"})
OF_THE_MODEL = frozenset({"adammini"})
MATRICES_ONLY = frozenset({"spectralsphere"})
NEED_CLOSURE = frozenset({"alig"})
NEED_CURVATURE = frozenset({"adahessian", "sophiah"})
#: The initial value of state that does not start at zero.
FRESH: dict[str, Callable[[dict[str, Any]], dict[str, float]]] = {
    "adai": lambda _: {"beta1_prod": 1.0},
    "dadaptadagrad": lambda _: {"alpha_k": 1e-6},
    "vsgd": lambda group: {"bg": group["pbg2"], "bhg": group["pbhg2"]},
    "yogi": lambda _: {"exp_avg": 1e-6, "exp_avg_sq": 1e-6},
}


def optimizers() -> list[str]:
    """The package's own list, without the classes that it re-exports from torch."""
    return [
        name
        for name in package.get_supported_optimizers()
        if package.load_optimizer(name).__module__.startswith("pytorch_optimizer")
        and name not in LEFT_OUT
    ]


def build(name: str, model: nn.Module) -> Optimizer:
    params: Any = model.parameters()
    if name in OF_THE_MODEL:
        params = model
    elif name in BY_SHAPE:
        params = [
            {"params": [p for p in model.parameters() if p.ndim > 1], "use_muon": True},
            {"params": [p for p in model.parameters() if p.ndim == 1], "use_muon": False},
        ]
    return package.load_optimizer(name)(params, **OPTIONS.get(name, {}))


def model_for(name: str, seed: int = 0) -> nn.Module:
    return make(MatrixNet if name in MATRICES_ONLY else SmallNet, seed=seed)


def fresh_of(name: str, optimizer: Optimizer) -> dict[str, float]:
    return FRESH[name](optimizer.param_groups[0]) if name in FRESH else {}


class HandMaskedWithCurvature(HandMasked):
    """Its gradients have a graph with the mask in it, so curvature counts live weights only."""

    def step(self, index: int | None = None) -> None:
        self.optimizer.zero_grad()
        loss_of(self.model, self.t + 1).backward(create_graph=True)
        if not self.oracle.is_update(self.t + 1):
            for name, mask in self.oracle.masks.items():
                parameter = self.params[name]
                live = torch.from_numpy(mask).view(parameter.shape)
                parameter.grad = torch.where(live, parameter.grad, 0.0)
        self.apply()


def by_hand_of(name: str, model: nn.Module) -> HandMasked:
    names = tuple(key for key, p in model.named_parameters() if p.ndim > 1)
    oracle = oracle_for("rigl", model, names=names, **SETTINGS)
    optimizer = build(name, model)
    kind: type[HandMasked] = HandMasked
    if name in NEED_CLOSURE:
        kind = HandMaskedByClosure
    elif name in NEED_CURVATURE:
        kind = HandMaskedWithCurvature
    return kind(model, optimizer, oracle, fresh=fresh_of(name, optimizer))


def seeded(t: int) -> None:
    """Some of them draw random numbers, from all three sources."""
    torch.manual_seed(t)
    random.seed(t)
    np.random.seed(t)  # noqa: NPY002


def step(name: str, model: nn.Module, optimizer: Optimizer, t: int) -> None:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, t)
        loss.backward(create_graph=name in NEED_CURVATURE)
        return loss

    if name in NEED_CLOSURE:
        optimizer.step(closure)
    else:
        closure()
        optimizer.step()


def assert_dropped_are_zero(optimizer: SparseOptimizer) -> None:
    for layer in optimizer.layers:
        assert not layer.weight[~layer.mask].any(), layer.name


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
@pytest.mark.parametrize("name", [n for n in optimizers() if n not in NOT_A_VALUE_A_WEIGHT])
def test_optimizer_works_without_registration(name):
    """After every step dropped weights are zero, and their state a fresh parameter's."""
    model, own_model = model_for(name), model_for(name)
    seeded(0)
    by_hand = by_hand_of(name, own_model)
    seeded(0)
    optimizer = SparseOptimizer(build(name, model), model, **SETTINGS)
    fresh = fresh_of(name, optimizer)
    start = [p.detach().clone() for p in model.parameters()]
    for t in range(1, STEPS + 1):
        seeded(t)
        step(name, model, optimizer, t)
        seeded(t)
        by_hand.step()
        assert_dropped_are_fresh(optimizer, fresh)
    assert_same_weights(model, own_model)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert [record.step for record in optimizer.history if not record.skipped] == [5, 10]
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), start, strict=True))


@pytest.mark.parametrize("name", ["lion", "aggmo", "soap", "prodigy", "vsgd", "schedulefreeadamw"])
def test_optimizer_resumes_where_it_was(name, tmp_path):
    """State in containers, in lists of matrices and with its own initial value is restored too."""
    model, other_model = model_for(name), model_for(name, seed=9)
    optimizer = SparseOptimizer(build(name, model), model, **SETTINGS)
    for t in range(1, 8):
        step(name, model, optimizer, t)
    saved = saved_and_loaded(optimizer, tmp_path)
    other = SparseOptimizer(build(name, other_model), other_model, **SETTINGS)
    other_model.load_state_dict(model.state_dict())
    other.load_state_dict(saved)
    for t in range(8, 15):
        step(name, model, optimizer, t)
        step(name, other_model, other, t)
    assert_same_run(model, optimizer, other_model, other)


@pytest.mark.parametrize("method", ["set", "pruning"])
@pytest.mark.parametrize("name", ["lion", "soap", "vsgd"])
def test_optimizer_works_with_the_other_methods(name, method):
    model = model_for(name)
    optimizer = SparseOptimizer(build(name, model), model, method=method, **SETTINGS)
    for t in range(1, 36):
        step(name, model, optimizer, t)
        assert_dropped_are_zero(optimizer)
        if name not in NOT_A_VALUE_A_WEIGHT:
            assert_dropped_are_fresh(optimizer, fresh_of(name, optimizer))
    live = sum(layer.live for layer in optimizer.layers)
    assert live == sum(layer.target for layer in optimizer.layers)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_left_out_optimizers_are_still_in_the_package():
    assert set(LEFT_OUT) <= set(package.get_supported_optimizers())
    assert len(optimizers()) > 100


def test_schedule_free_optimizers_are_switched_between_training_and_evaluation():
    """As trainers do it: they call `train()` and `eval()` on an optimizer that has them."""
    model, own_model = make(), make()
    inner = package.ScheduleFreeAdamW(model.parameters(), lr=0.01)
    optimizer = SparseOptimizer(inner, model, method="static", **SETTINGS)
    own = package.ScheduleFreeAdamW(own_model.parameters(), lr=0.01)
    by_hand = HandMasked(own_model, own, oracle_for("static", own_model, **SETTINGS))
    for net in (optimizer, own):
        net.train()
    for t in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss_of(model, t).backward()
        optimizer.step()
        by_hand.step()
    training = {name: p.detach().clone() for name, p in model.named_parameters()}
    for net in (optimizer, own):
        net.eval()
    assert_same_weights(model, own_model)
    assert any(not torch.equal(training[name], p) for name, p in model.named_parameters())
    assert_dropped_are_fresh(optimizer)


def test_optimizer_without_modes_has_none():
    model = make()
    optimizer = SparseOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model, **SETTINGS)
    assert not hasattr(optimizer, "train")
    assert not hasattr(optimizer, "eval")
