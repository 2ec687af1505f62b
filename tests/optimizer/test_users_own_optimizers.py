"""A user's own optimizer works without registration."""

import pytest
import torch

from sparseopt import SparseOptimizer
from tests.support.by_hand import HandMasked
from tests.support.looking import assert_dropped_are_fresh, assert_same_weights
from tests.support.nets import CLASSES, SmallNet, make
from tests.support.oracles import oracle_for
from tests.support.resuming import assert_same_run, saved_and_loaded
from tests.support.training import train, train_step
from tests.support.wrapping import settings_with

STEPS = 30
SETTINGS = settings_with(total_steps=STEPS)


class SignWithMemory(torch.optim.Optimizer):
    """A user's own optimizer, with state under an arbitrary name."""

    def __init__(self, params, lr=0.01):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                memory = self.state[p].setdefault("wandering", torch.zeros_like(p))
                memory.mul_(0.9).add_(p.grad).add_(1e-4)
                p.sub_(group["lr"] * memory.sign())
        return loss


@pytest.mark.parametrize("method", ["set", "rigl", "pruning"])
def test_users_own_optimizer_works_without_registration(method):
    model, own_model = make(), make()
    oracle = oracle_for(method, own_model, **SETTINGS)
    by_hand = HandMasked(own_model, SignWithMemory(own_model.parameters()), oracle)
    optimizer = SparseOptimizer(
        SignWithMemory(model.parameters()), model, method=method, **SETTINGS
    )
    for t in range(1, STEPS + 1):
        train_step(model, optimizer, t)
        by_hand.step()
        assert_dropped_are_fresh(optimizer)
    assert_same_weights(model, own_model)


FRESH = {"scale": 0.5}


class Remembering(torch.optim.Optimizer):
    """Keeps state in containers, with initial values other than zero.

    It would divide by zero if `scale` were ever zero, also where no gradient arrives.
    """

    def __init__(self, params, lr=0.01, bring="look up"):
        super().__init__(params, {"lr": lr})
        self.bring = bring

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is None
        for group in self.param_groups:
            for p in group["params"]:
                state = self.entry(p)
                if len(state) == 0:
                    state["scale"] = torch.full_like(p, 0.5)
                    state["speeds"] = {0.5: torch.zeros_like(p), 0.9: torch.zeros_like(p)}
                state["scale"].lerp_(p.grad.abs().clamp(min=0.1), 0.1)
                for decay, speed in state["speeds"].items():
                    speed.mul_(decay).add_(p.grad)
                update = sum(state["speeds"].values()) / state["scale"]
                p.sub_(group["lr"] * update / update.norm())

    def entry(self, p):
        """The state of a parameter, created in each of the ways that optimizers use."""
        if self.bring == "assign" and p not in self.state:
            speeds = {0.5: torch.zeros_like(p), 0.9: torch.zeros_like(p)}
            self.state[p] = {"scale": torch.full_like(p, 0.5), "speeds": speeds}
        if self.bring == "setdefault":
            return self.state.setdefault(p, {})
        return self.state[p]


@pytest.mark.parametrize("bring", ["look up", "assign", "setdefault"])
@pytest.mark.parametrize("method", ["set", "rigl", "pruning"])
def test_state_in_containers_and_state_that_begins_elsewhere_than_at_zero(method, bring):
    """State of dropped weights equals a fresh parameter's, also in containers."""
    model, own_model = make(), make()
    oracle = oracle_for(method, own_model, **SETTINGS)
    plain = Remembering(own_model.parameters())
    by_hand = HandMasked(own_model, plain, oracle, fresh=FRESH)
    inner = Remembering(model.parameters(), bring=bring)
    state = inner.state
    optimizer = SparseOptimizer(inner, model, method=method, **SETTINGS)
    for t in range(1, STEPS + 1):
        train_step(model, optimizer, t)
        by_hand.step()
        assert inner.state is state
        assert_dropped_are_fresh(optimizer, FRESH)
        for layer in optimizer.layers:
            for speed in optimizer.state.get(layer.weight, {}).get("speeds", {}).values():
                assert not speed[~layer.mask].any()
    assert_same_weights(model, own_model)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_optimizer_resumes_where_it_was(tmp_path):
    model, other_model = make(), make(seed=9)
    optimizer = SparseOptimizer(Remembering(model.parameters()), model, **SETTINGS)
    train(model, optimizer, 13)
    saved = saved_and_loaded(optimizer, tmp_path)
    other = SparseOptimizer(Remembering(other_model.parameters()), other_model, **SETTINGS)
    other_model.load_state_dict(model.state_dict())
    other.load_state_dict(saved)
    train(model, optimizer, STEPS - 13, start=13)
    train(other_model, other, STEPS - 13, start=13)
    assert_same_run(model, optimizer, other_model, other)


class Preconditioned(torch.optim.Optimizer):
    """Keeps a matrix of row products, of the weight's own shape if that is square."""

    def __init__(self, params, lr=0.05):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                gradient = p.grad.flatten(1) if p.ndim > 1 else p.grad[:, None]
                identity = torch.eye(len(gradient))
                factor = self.state[p].setdefault("factor", 0.1 * identity)
                factor.add_(gradient @ gradient.T)
                p.sub_(group["lr"] * torch.linalg.solve(factor, gradient).view_as(p))


class Square(SmallNet):
    """One of its layers has a square weight."""

    def __init__(self):
        super().__init__()
        self.fc2 = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, CLASSES))


def test_factor_of_a_square_weight_is_not_taken_for_state_of_its_weights():
    """The preconditioner has the weight's shape by chance."""
    model = make(Square)
    optimizer = SparseOptimizer(Preconditioned(model.parameters()), model, **SETTINGS)
    weight = model.fc2[0].weight
    products = 0.1 * torch.eye(16)
    for t in range(1, 13):
        updating = optimizer.is_update_step
        train_step(model, optimizer, t)
        if not updating:
            products.addmm_(weight.grad, weight.grad.T)
        torch.testing.assert_close(optimizer.state[weight]["factor"], products)
        assert not weight[~optimizer.masks["fc2.0.weight"]].any()


def every_third(p):
    return (torch.arange(p.numel()) % 3 == 0).view(p.shape)


class Flagging(torch.optim.SGD):
    """Keeps a flag for every weight as state."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].setdefault("flags", every_third(p))
        return super().step(closure)


def test_flags_that_the_optimizer_keeps_are_left_alone():
    model = make()
    optimizer = SparseOptimizer(Flagging(model.parameters(), lr=0.05), model, **SETTINGS)
    train(model, optimizer, 12)
    for p in model.parameters():
        assert torch.equal(optimizer.state[p]["flags"], every_third(p))
    assert_dropped_are_fresh(optimizer)


class WithoutRate(torch.optim.Optimizer):
    """Its groups have no learning rate, as with optimizers that find their step size."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(0.01 * p.grad.sign())


def test_groups_need_no_learning_rate():
    model, own_model = make(), make()
    oracle = oracle_for("rigl", own_model, **SETTINGS)
    by_hand = HandMasked(own_model, WithoutRate(own_model.parameters()), oracle)
    optimizer = SparseOptimizer(WithoutRate(model.parameters()), model, **SETTINGS)
    for t in range(1, 13):
        train_step(model, optimizer, t)
        by_hand.step()
    assert_same_weights(model, own_model)


@pytest.mark.parametrize("method", ["rigl", "pruning"])
def test_subclass_begins_where_its_parent_does(method):
    """Adagrad's accumulator exists before the first step; dropped weights have its first value."""

    class Own(torch.optim.Adagrad):
        pass

    model, own_model = make(), make()
    options = {"lr": 0.05, "initial_accumulator_value": 0.25}
    oracle = oracle_for(method, own_model, **SETTINGS)
    by_hand = HandMasked(
        own_model, Own(own_model.parameters(), **options), oracle, fresh={"sum": 0.25}
    )
    optimizer = SparseOptimizer(
        Own(model.parameters(), **options), model, method=method, **SETTINGS
    )
    for t in range(1, STEPS + 1):
        train_step(model, optimizer, t)
        by_hand.step()
        assert_dropped_are_fresh(optimizer, {"sum": 0.25})
    assert_same_weights(model, own_model)
