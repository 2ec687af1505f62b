"""State with one number a weight is found without its name; other state does not change."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from sparseopt import SparseOptimizer
from sparseopt.optimizer.state.per_weight import probe_shape, show_per_weight
from tests.support.nets import make
from tests.support.resuming import assert_same_run, saved_and_loaded
from tests.support.training import backward, train

SETTINGS = {"density": 0.2, "total_steps": 40, "delta_t": 5, "seed": 3}


class Keeping(torch.optim.Optimizer):
    """Momentum, and beside it what `keep` makes of a gradient."""

    def __init__(self, params, lr=0.05):
        super().__init__(params, {"lr": lr})
        self.calls = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.calls += 1
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].mul_(0.9).add_(p.grad)
                self.keep(state, p.grad)
                p.sub_(group["lr"] * state["momentum"])

    def keep(self, state, gradient):
        raise NotImplementedError


class InAnotherBasis(Keeping):
    """Moments of column sums."""

    def keep(self, state, gradient):
        moments = gradient.flatten(1).cumsum(1).view_as(gradient) if gradient.ndim > 1 else gradient
        state["turned"] = state.get("turned", 0.0) + moments


class Centred(Keeping):
    """Moments of a gradient with centred rows, which are still one value a weight."""

    def keep(self, state, gradient):
        mean = gradient.flatten(1).mean(1) if gradient.ndim > 1 else gradient.mean()
        shape = (-1, *[1] * (gradient.ndim - 1)) if gradient.ndim > 1 else ()
        state["centred"] = state.get("centred", 0.0) + gradient - mean.view(shape)


class Random(Keeping):
    """State that starts at random and adds each weight's own gradient."""

    def keep(self, state, gradient):
        state.setdefault("drawn", torch.randn_like(gradient)).add_(gradient)


class Stacked(Keeping):
    """Two moments in one tensor, in a list of dictionaries."""

    def keep(self, state, gradient):
        both = torch.stack([gradient, gradient.square()])
        blocks = state.setdefault("blocks", [{"moments": torch.zeros_like(both)}])
        blocks[0]["moments"].add_(both)


@pytest.mark.parametrize(
    ("kind", "path", "is_shown"),
    [
        (InAnotherBasis, "turned", False),
        (Centred, "centred", True),
        (Random, "drawn", True),
        (Stacked, "blocks.moments", True),
    ],
)
@pytest.mark.parametrize("shape", [(6, 10), (12, 12), (4, 3, 3, 3), (300, 200)])
def test_per_weight_state_is_recognised(kind, path, is_shown, shape):
    inner = kind([nn.Parameter(torch.randn(3)), weight := nn.Parameter(torch.randn(shape))])
    found = show_per_weight(inner, weight)
    assert found.can_begin_again
    assert found.shown == {"momentum": True, path: is_shown}


def test_showing_per_weight_state_leaves_no_trace():
    weight, other = nn.Parameter(torch.randn(6, 10)), nn.Parameter(torch.randn(3))
    inner = Random([other, weight])
    fired = []
    inner.register_step_pre_hook(lambda *_: fired.append(1))
    weight.grad, other.grad = torch.ones(6, 10), torch.ones(3)
    inner.step()
    state = {key: value.clone() for key, value in inner.state[weight].items()}
    before = weight.detach().clone(), torch.get_rng_state(), random.getstate()
    numbers = np.random.get_state()[1].copy()  # noqa: NPY002
    show_per_weight(inner, weight)
    assert torch.equal(weight, before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
    assert random.getstate() == before[2]
    assert np.array_equal(np.random.get_state()[1], numbers)  # noqa: NPY002
    assert inner.calls == len(fired) == 1
    assert inner.param_groups[0]["params"] == [other, weight]
    assert inner.param_groups[0]["lr"] == 0.05
    for key, value in inner.state[weight].items():
        assert torch.equal(value, state[key])


def test_optimizer_that_cannot_be_stepped_alone_shows_nothing():
    class Failing(torch.optim.SGD):
        def step(self, closure=None):
            raise RuntimeError("needs other ranks")

    weight = nn.Parameter(torch.ones(3, 4))
    assert show_per_weight(Failing([weight], lr=0.1), weight).shown == {}


@pytest.mark.parametrize(
    ("shape", "smaller"),
    [
        ((4096, 4096), (64, 64)),
        ((10, 16), (10, 16)),
        ((10, 100_000), (10, 782)),
        ((512, 512, 3, 3), (32, 32, 3, 3)),
    ],
)
def test_shape_that_is_tried_is_like_the_weights_and_small(shape, smaller):
    assert probe_shape(torch.Size(shape)) == smaller


def test_state_in_another_basis_is_left_alone_and_made_again_by_an_update():
    model = make()
    optimizer = SparseOptimizer(InAnotherBasis(model.parameters()), model, **SETTINGS)
    kept = {layer: torch.zeros_like(layer.weight) for layer in optimizer.layers}
    for index in range(1, 13):
        updating = optimizer.is_update_step
        backward(model, index)
        gradients = {layer: layer.weight.grad.clone() for layer in kept}
        before = optimizer.masks
        optimizer.step()
        for layer, moments in kept.items():
            assert not layer.weight[~layer.mask].any()
            if not updating:
                moments += gradients[layer].flatten(1).cumsum(1).view_as(moments)
                assert torch.equal(optimizer.state[layer.weight]["turned"], moments)
            elif not torch.equal(before[layer.name], layer.mask):
                assert layer.weight not in optimizer.state
                moments.zero_()
        optimizer.zero_grad()


def test_each_part_of_a_stack_is_masked():
    model = make()
    optimizer = SparseOptimizer(Stacked(model.parameters()), model, **SETTINGS)
    for index in range(1, 13):
        backward(model, index)
        optimizer.step()
        optimizer.zero_grad()
        for layer in optimizer.layers:
            for part in optimizer.state[layer.weight]["blocks"][0]["moments"]:
                assert not part[~layer.mask].any()
                assert part[layer.mask].any()


@pytest.mark.parametrize("steps", [10, 12])
def test_run_whose_state_an_update_took_away_resumes(steps, tmp_path):
    """Right after the update most layers have no state."""
    model, other_model = make(), make(seed=9)
    optimizer = SparseOptimizer(InAnotherBasis(model.parameters()), model, **SETTINGS)
    train(model, optimizer, steps)
    saved = saved_and_loaded(optimizer, tmp_path)
    other = SparseOptimizer(InAnotherBasis(other_model.parameters()), other_model, **SETTINGS)
    other_model.load_state_dict(model.state_dict())
    other.load_state_dict(saved)
    train(model, optimizer, 6, start=steps)
    train(other_model, other, 6, start=steps)
    assert_same_run(model, optimizer, other_model, other)


def test_state_of_another_basis_cannot_be_live_state():
    model = make()
    with pytest.raises(ValueError, match="state='live'.*InAnotherBasis.*'turned'"):
        SparseOptimizer(InAnotherBasis(model.parameters()), model, state="live", **SETTINGS)


class OwnAdafactor(torch.optim.Adafactor):
    """Factorises the second moments of a matrix, and keeps all of them for a vector."""


class ByRow(torch.optim.SGD):
    """Divides a gradient by the norm of its row, without any state."""

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.sub_(0.1 * p.grad / (p.grad.norm(dim=-1, keepdim=True) + 1e-6))


class MatricesOnly(torch.optim.SGD):
    """Raises an error for a vector."""

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.sub_(0.1 * p.grad / torch.linalg.matrix_norm(p.grad.flatten(1)))


@pytest.mark.parametrize("kind", [OwnAdafactor, ByRow, MatricesOnly])
def test_optimizer_that_needs_the_shape_of_a_weight_cannot_have_live_state(kind):
    model = make()
    inner = kind([p for p in model.parameters() if p.ndim > 1], lr=0.05)
    with pytest.raises(ValueError, match=f"state='live'.*{kind.__name__}.*shape of the weight"):
        SparseOptimizer(inner, model, state="live", **SETTINGS)


class Signed(torch.optim.SGD):
    """Steps by the sign, at a random distance that is drawn for each weight."""

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.sub_(0.1 * p.grad.sign() * torch.rand_like(p))


class OnlyMomentum(Keeping):
    """Has no other state."""

    def keep(self, state, gradient):
        pass


@pytest.mark.parametrize("lr", [1e-6, 0.05])
@pytest.mark.parametrize("kind", [Signed, OnlyMomentum])
def test_own_optimizer_that_treats_every_weight_alike_may_have_live_state(kind, lr):
    model = make()
    inner = kind(model.parameters(), lr=lr)
    optimizer = SparseOptimizer(inner, model, state="live", **SETTINGS)
    train(model, optimizer, 3)
    assert optimizer.steps == 3
    live = int(optimizer.masks["fc1.weight"].sum())
    for value in optimizer.state[model.fc1.weight].values():
        assert value.shape == (live,)


class Lomo(torch.optim.SGD):
    """An optimizer with the name of one that steps in backward()."""


def test_optimizer_that_steps_in_backward_is_refused_by_name():
    model = make()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(TypeError, match=r"Lomo.*backward\(\)"):
        SparseOptimizer(Lomo(model.parameters(), lr=0.1), model, **SETTINGS)
    assert all(map(torch.equal, model.parameters(), before))


class Wide(nn.Module):
    """Gradients of weights large enough for state in codes of 8 bits."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(108, 64)
        self.fc2 = nn.Linear(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.fc1(x.flatten(1)).relu())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["Adam8bit", "Adagrad8bit", "Lion8bit"])
def test_codes_of_dropped_weights_stand_for_zero(name):
    """The codes are decoded by the package's own function."""
    package = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    model = make(Wide)
    inner = getattr(package.optim, name)(model.parameters(), lr=0.01)
    optimizer = SparseOptimizer(inner, model, **SETTINGS)
    layer = optimizer.layers[0]
    for index in range(1, 13):
        backward(model, index)
        optimizer.step()
        optimizer.zero_grad()
        entry = optimizer.state[layer.weight]
        for number in "12":
            if f"state{number}" not in entry or entry[f"state{number}"].dtype != torch.uint8:
                continue
            values = package.functional.dequantize_blockwise(
                entry[f"state{number}"],
                absmax=entry[f"absmax{number}"],
                code=entry[f"qmap{number}"],
                blocksize=256,
            )
            assert not values[~layer.mask].any()
            assert values[layer.mask].any()


@pytest.mark.filterwarnings("ignore")
def test_run_with_state_of_codes_resumes(tmp_path):
    package = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    model, other_model = make(Wide), make(Wide, seed=9)
    optimizer = SparseOptimizer(package.optim.Adam8bit(model.parameters()), model, **SETTINGS)
    train(model, optimizer, 12)
    saved = saved_and_loaded(optimizer, tmp_path)
    inner = package.optim.Adam8bit(other_model.parameters())
    other = SparseOptimizer(inner, other_model, **SETTINGS)
    other_model.load_state_dict(model.state_dict())
    other.load_state_dict(saved)
    train(model, optimizer, 6, start=12)
    train(other_model, other, 6, start=12)
    for mine, theirs in zip(model.parameters(), other_model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
