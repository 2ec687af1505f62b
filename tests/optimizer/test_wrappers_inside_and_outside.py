"""Optimizers that wrap others: inside a `SparseOptimizer`, and around it."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from sparseopt import SparseOptimizer
from tests.support.looking import assert_dropped_are_fresh, assert_same_weights
from tests.support.nets import loss_of, make
from tests.support.training import train

SETTINGS = {"density": 0.2, "total_steps": 40, "delta_t": 5, "seed": 3}


class Reading(Optimizer):
    """Like Opacus's DPOptimizer: never calls ``Optimizer.__init__``, and reads from another.

    It makes the gradient itself, in ``step()``.
    """

    def __init__(self, optimizer):
        self.original_optimizer = optimizer

    @property
    def param_groups(self):
        return self.original_optimizer.param_groups

    @property
    def state(self):
        return self.original_optimizer.state

    @property
    def defaults(self):
        return self.original_optimizer.defaults

    def zero_grad(self, set_to_none=True):
        self.original_optimizer.zero_grad(set_to_none)

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                noise = torch.linspace(0.01, 0.02, parameter.numel()).view_as(parameter)
                parameter.grad = parameter.grad + noise
        return self.original_optimizer.step(closure)

    def state_dict(self):
        return self.original_optimizer.state_dict()

    def load_state_dict(self, state_dict):
        self.original_optimizer.load_state_dict(state_dict)


class Plain(Reading):
    """The same without a change of the gradient, and without ``defaults``."""

    defaults = property(lambda self: getattr(self, "nothing"))  # noqa: B009

    def step(self, closure=None):
        return self.original_optimizer.step(closure)


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


@pytest.mark.parametrize("method", ["static", "set", "rigl"])
def test_wrapper_without_hooks_of_its_own_trains_as_what_it_wraps(method):
    plain, wrapped = make(), make()
    settings = {**SETTINGS, "method": method, "state": "masked"}
    train(plain, SparseOptimizer(adam(plain), plain, **settings), 12)
    optimizer = SparseOptimizer(Plain(adam(wrapped)), wrapped, **settings)
    train(wrapped, optimizer, 12)
    assert_same_weights(plain, wrapped)
    assert isinstance(optimizer, Optimizer)
    assert optimizer.defaults == {}
    assert optimizer.state is optimizer.inner.original_optimizer.state


def test_gradients_that_it_makes_in_step_move_no_dropped_weight():
    model = make()
    optimizer = SparseOptimizer(Reading(adam(model)), model, method="set", **SETTINGS)
    for t in range(12):
        optimizer.zero_grad()
        loss_of(model, t).backward()
        optimizer.step()
        assert_dropped_are_fresh(optimizer)
    assert len(optimizer.history) == 2


def test_step_hooks_fire_once_and_schedulers_are_content():
    model = make()
    optimizer = SparseOptimizer(Plain(adam(model)), model, method="static", **SETTINGS)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    for t in range(4):
        optimizer.zero_grad()
        loss_of(model, t).backward()
        optimizer.step()
        scheduler.step()
    assert len(calls) == 4
    assert optimizer.param_groups[0]["lr"] == 0.0025


@pytest.mark.parametrize("kind", [Plain, Reading])
def test_checkpoints_resume(kind):
    runs = []
    for seed in (0, 1):
        model = make(seed=seed)
        runs.append((model, SparseOptimizer(kind(adam(model)), model, method="set", **SETTINGS)))
    (model, optimizer), (other, resumed) = runs
    train(model, optimizer, 7)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 7, start=7)
    train(other, resumed, 7, start=7)
    assert_same_weights(model, other)


def test_post_local_sgd_of_one_process_trains_as_what_it_wraps(tmp_path):
    from torch.distributed.algorithms.model_averaging.averagers import ModelAverager
    from torch.distributed.optim import PostLocalSGDOptimizer

    class Alone(ModelAverager):
        def __init__(self):
            self.step = 0

        def average_parameters(self, params):
            self.step += 1

    plain, wrapped = make(), make()
    settings = {**SETTINGS, "method": "rigl", "state": "masked"}
    train(plain, SparseOptimizer(adam(plain), plain, **settings), 12)
    inner = PostLocalSGDOptimizer(adam(wrapped), Alone())
    optimizer = SparseOptimizer(inner, wrapped, **settings)
    train(wrapped, optimizer, 12)
    assert_same_weights(plain, wrapped)

    file = tmp_path / "checkpoint.pt"
    torch.save({"model": wrapped.state_dict(), "optimizer": optimizer.state_dict()}, file)
    saved = torch.load(file)
    assert saved["optimizer"]["step"] == 10
    other = make(seed=1)
    averager = Alone()
    resumed = SparseOptimizer(PostLocalSGDOptimizer(adam(other), averager), other, **settings)
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    assert averager.step == 10
    train(wrapped, optimizer, 7, start=12)
    train(other, resumed, 7, start=12)
    assert_same_weights(wrapped, other)


# Opacus's wheel brings a top-level package "benchmarks" with it, which hides this project's: it is
# in no extra, and this test runs where somebody has it.


@pytest.mark.parametrize("outside", [True, False])
@pytest.mark.parametrize("method", ["static", "set", "rigl"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_opacus_without_noise_trains_as_without_opacus(method, outside):
    """Per-sample gradients without clipping add up to the gradient."""
    opacus = pytest.importorskip("opacus")
    dp = {"noise_multiplier": 0.0, "max_grad_norm": 1e6, "expected_batch_size": 8}
    settings = {**SETTINGS, "method": method}
    plain, private = linear_net(), linear_net()
    reference = SparseOptimizer(adam(plain), plain, **settings)
    model = opacus.GradSampleModule(private)
    if outside:
        ours = SparseOptimizer(adam(private), model, **settings)
        optimizer = opacus.optimizers.DPOptimizer(ours, **dp)
    else:
        inner = opacus.optimizers.DPOptimizer(adam(private), **dp)
        ours = optimizer = SparseOptimizer(inner, model, **settings)
    for t in range(12):
        inputs = torch.randn(8, 20, generator=torch.Generator().manual_seed(t))
        for network, one in ((plain, reference), (model, optimizer)):
            one.zero_grad()
            network(inputs).square().mean().backward()
            one.step()
    for name, mask in reference.masks.items():
        assert torch.equal(mask, ours.masks[name])
    for mine, theirs in zip(plain.parameters(), private.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
    assert_dropped_are_fresh(ours)


def linear_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 4))


class GradSampleModule(nn.Module):
    """A wrapper with the parameter names of Opacus."""

    def __init__(self, module):
        super().__init__()
        self._module = module

    def forward(self, x):
        return self._module(x)


def test_names_have_the_prefix_of_opacus_or_not():
    model = linear_net()
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), model, method="static", density=0.2
    )
    other = GradSampleModule(linear_net())
    optimizer.apply_masks(other)
    for name, mask in optimizer.masks.items():
        assert torch.equal(other._module.get_parameter(name) != 0, mask)
    wrapped = GradSampleModule(linear_net())
    same = SparseOptimizer(
        torch.optim.SGD(wrapped.parameters(), lr=0.1), wrapped, method="static", density=0.2
    )
    assert list(same.masks) == list(optimizer.masks)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_module."])
@pytest.mark.parametrize("parallel", [False, True])
def test_masks_by_name_may_have_a_wrappers_prefix(prefix, parallel):
    """Masks in a separate file, saved from a wrapped model or loaded into one."""
    masks = {"0.weight": torch.rand(40, 20) < 0.3, "2.weight": torch.rand(4, 40) < 0.3}
    model = nn.DataParallel(linear_net()) if parallel else linear_net()
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model,
        method="static",
        mask={prefix + name: mask for name, mask in masks.items()},
    )
    for name, mask in masks.items():
        assert torch.equal(optimizer.masks[name], mask)
    densities = SparseOptimizer(
        torch.optim.SGD(linear_net().parameters(), lr=0.1),
        method="static",
        init={f"{prefix}0.0": 0.5},
    )
    assert densities.layers[0].density == 0.5


def sam():
    return pytest.importorskip("pytorch_optimizer").SAM


def two_calls(model, optimizer, t):
    loss_of(model, t).backward()
    optimizer.first_step(zero_grad=True)
    loss_of(model, t).backward()
    optimizer.second_step(zero_grad=True)


@pytest.mark.parametrize("method", ["static", "set", "rigl"])
def test_sam_around_ours_takes_a_pair_of_calls_for_a_step(method, state):
    model = make()
    made = []

    def base(params, **settings):
        inner = torch.optim.SGD(params, **settings)
        made.append(SparseOptimizer(inner, model, method=method, state=state, **SETTINGS))
        return made[0]

    optimizer = sam()(model.parameters(), base_optimizer=base, lr=0.1)
    for t in range(12):
        two_calls(model, optimizer, t)
        assert_dropped_are_fresh(made[0])
    assert made[0].steps == 12
    assert len(made[0].history) == (0 if method == "static" else 2)


def test_sam_around_ours_equals_sam_on_a_model_that_is_masked_by_hand():
    model, other = make(), make()
    made = []

    def base(params, **settings):
        inner = torch.optim.SGD(params, **settings)
        made.append(SparseOptimizer(inner, model, method="static", **SETTINGS))
        return made[0]

    optimizer = sam()(model.parameters(), base_optimizer=base, lr=0.1)
    masks = made[0].masks
    by_hand = sam()(other.parameters(), base_optimizer=torch.optim.SGD, lr=0.1)
    with torch.no_grad():
        for name, mask in masks.items():
            other.get_parameter(name).masked_fill_(~mask, 0.0)

    def mask_gradient(weight, hidden):
        weight.grad.masked_fill_(hidden, 0.0)

    for name, mask in masks.items():
        hook = partial(mask_gradient, hidden=~mask)
        other.get_parameter(name).register_post_accumulate_grad_hook(hook)
    for t in range(8):
        two_calls(model, optimizer, t)
        two_calls(other, by_hand, t)
    assert_same_weights(model, other)


def test_sam_inside_works_by_closure():
    model = make()
    inner = sam()(model.parameters(), base_optimizer=torch.optim.SGD, lr=0.1)
    optimizer = SparseOptimizer(inner, model, method="set", **SETTINGS)

    def closure(t):
        optimizer.zero_grad()
        loss = loss_of(model, t)
        loss.backward()
        return loss

    for t in range(12):
        closure(t)
        optimizer.step(lambda t=t: closure(t))
        assert_dropped_are_fresh(optimizer)
    assert optimizer.steps == 12


def test_sams_two_calls_on_ours_name_the_right_order():
    model = make()
    inner = sam()(model.parameters(), base_optimizer=torch.optim.SGD, lr=0.1)
    optimizer = SparseOptimizer(inner, model, method="set", **SETTINGS)
    for name in ("first_step", "second_step"):
        assert not hasattr(optimizer, name)
        with pytest.raises(AttributeError, match=rf"{name}\(\).*base_optimizer=lambda"):
            getattr(optimizer, name)


@pytest.mark.parametrize("method", ["static", "set", "rigl"])
def test_lookahead_inside_brings_no_dropped_weight_back(method):
    lookahead = pytest.importorskip("pytorch_optimizer").Lookahead
    model = make()
    inner = lookahead(adam(model), k=3)
    optimizer = SparseOptimizer(inner, model, method=method, **SETTINGS)
    for t in range(12):
        optimizer.zero_grad()
        loss_of(model, t).backward()
        optimizer.step()
        for layer in optimizer.layers:
            assert not layer.weight[~layer.mask].any()
