"""Under weight norm every slice keeps a live weight that is not zero: 0 / 0 would be NaN."""

import copy
import warnings
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from sparseopt import (
    NM,
    CheckpointError,
    Compose,
    Method,
    Move,
    Pruning,
    Rewiring,
    SparseOptimizer,
    SRigL,
    available_methods,
)
from sparseopt.masks.drop_and_grow import plan_update
from sparseopt.masks.layer import SparseLayer
from tests.oracle.selection import among
from tests.support import wrapping
from tests.support.looking import logical

wrap = partial(wrapping.wrap, sparse={"0": True}, init={})
NAME = "0.parametrizations.weight.original1"
SHAPES = st.lists(st.integers(1, 5), min_size=2, max_size=3).map(tuple)


def slices_of(array, dim):
    """One slice a row; with dim -1 the full weight is one slice."""
    return (
        array.reshape(1, -1)
        if dim == -1
        else np.moveaxis(array, dim, 0).reshape(array.shape[dim], -1)
    )


def oracle_survivors(weight, mask, scores, drop, dim):
    """Flat mask of what stays: the largest of each slice, then those of the highest scores."""
    places = slices_of(np.arange(weight.size).reshape(weight.shape), dim)
    kept = np.zeros(weight.size, bool)
    for row in places:
        live = [place for place in row if mask.flat[place]]
        if live:
            kept[max(live, key=lambda place: (abs(weight.flat[place]), -place))] = True
    return mask.reshape(-1) & ~among(
        mask.reshape(-1) & ~kept, scores.reshape(-1), drop, smallest_first=True
    )


@st.composite
def updates(draw):
    """A weight with ties, a mask with a live weight in each slice, scores, and what to move."""
    shape = draw(SHAPES)
    dim = draw(st.sampled_from([-1, *range(len(shape))]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    weight = rng.integers(-3, 4, shape) / 2.0
    mask = rng.random(shape) < draw(st.floats(0, 1))
    for row in slices_of(np.arange(mask.size).reshape(shape), dim):
        mask.flat[rng.choice(row)] = True
    drop = draw(st.integers(0, int(mask.sum()) - len(slices_of(mask, dim))))
    scores = rng.choice([-np.inf, 0.0, 0.5, 1.0, np.inf], shape)
    return weight, mask, scores, drop, dim, rng.random(shape)


@given(updates(), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_largest_of_each_slice_survives_and_counts_are_exact(update, dtype):
    weight, mask, scores, drop, dim, growth = update
    parameter = nn.Parameter(torch.from_numpy(np.where(mask, weight, 0.0)).to(dtype))
    layer = SparseLayer("w", parameter, torch.from_numpy(mask), 1, norm_dim=dim)
    survivors = oracle_survivors(np.where(mask, weight, 0.0), mask, scores, drop, dim)
    transition = plan_update(
        layer,
        drop=drop,
        grow=drop,
        drop_scores=torch.from_numpy(scores[mask]),
        grow_scores=torch.from_numpy(growth),
    )
    grown = among(~survivors, growth.reshape(-1), drop, smallest_first=False)
    transition.make(layer)
    np.testing.assert_array_equal(logical(layer.mask).reshape(-1), survivors | grown)
    assert layer.live == mask.sum()


def older_norm(module, dim=0):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(module, dim=dim)


NORMS = {
    "filters": lambda: parametrizations.weight_norm(nn.Conv1d(8, 8, 3)),
    "inputs": lambda: parametrizations.weight_norm(nn.Conv1d(8, 8, 3), dim=1),
    "whole": lambda: parametrizations.weight_norm(nn.Conv1d(8, 8, 3), dim=None),
    "older": lambda: older_norm(nn.Conv1d(8, 8, 3)),
    "older, whole": lambda: older_norm(nn.Conv1d(8, 8, 3), dim=None),
}


def net(norm="filters", seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(NORMS[norm](), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4, 2))


def loss_of(model):
    return lambda: model(torch.randn(6, 8, 6)).square().mean()


def train(optimizer, loss, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def method_of(name):
    return NM(1, 4) if name == "n:m" else name


def normed_weight(model):
    return (
        model[0].parametrizations.weight.original1
        if hasattr(model[0], "parametrizations")
        else model[0].weight_v
    )


def dead_slices(model, norm):
    """Slices in which every entry is zero."""
    dim = {"inputs": 1, "whole": -1, "older, whole": -1}.get(norm, 0)
    rows = slices_of(normed_weight(model).detach().numpy(), dim)
    return int((~(rows != 0).any(1)).sum())


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", [name for name in available_methods() if name != "rigl-struct"])
def test_no_slice_dies_whatever_the_method(method, norm):
    """So much is dropped, and so few are live, that slices of filters would die."""
    if method == "srigl" and norm == "inputs":
        pytest.skip("its constant fan-in and the norms of inputs are two structures at once")
    for seed in range(3):
        model = net(norm, seed)
        density = 0.25 if method in {"n:m", "srigl"} else 0.09
        optimizer = wrap(
            model, method=method_of(method), density=density, seed=seed, alpha=1.0, delta_t=2
        )
        targets = sum(layer.target for layer in optimizer.layers)
        for step in range(32):
            assert not dead_slices(model, norm), step
            torch.manual_seed(step)
            optimizer.zero_grad()
            loss_of(model)().backward()
            optimizer.step()
            assert model[0].weight.isfinite().all()
        assert sum(layer.live for layer in optimizer.layers) == targets
        assert method == "static" or optimizer.history


@pytest.mark.parametrize("norm", ["filters", "older"])
def test_weight_norm_is_known_by_shapes_without_a_model(norm):
    for seed in range(3):
        model = net(norm, seed)
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = SparseOptimizer(
            inner, density=0.06, init={}, seed=seed, alpha=1.0, delta_t=1, total_steps=3000
        )
        train(optimizer, loss_of(model), steps=20)
        assert optimizer.history[-1].dropped
        assert not dead_slices(model, norm)
        assert model[0].weight.isfinite().all()


@pytest.mark.parametrize("mask", ["random", "magnitude"])
def test_first_masks_differ_only_where_a_slice_would_have_no_live_weight(mask):
    """Such a slice gets its best weight, in place of the lowest of the other live weights."""
    changed = 0
    for seed in range(20):
        model = net(seed=seed)
        plain = nn.Sequential(nn.Conv1d(8, 8, 3), *copy.deepcopy(list(model)[1:]))
        plain[0].weight.data.copy_(normed_weight(model))
        settings = {"mask": mask, "method": "static", "density": 0.08, "seed": seed}
        without = logical(wrap(plain, **settings).masks["0.weight"])
        found = logical(wrap(model, **settings).masks[NAME])
        empty = ~without.reshape(8, -1).any(1)
        assert found.sum() == without.sum()
        assert found.reshape(8, -1).any(1).all()
        if not empty.any():
            np.testing.assert_array_equal(found, without)
        assert not (found & ~without).reshape(8, -1)[~empty].any()
        assert ((found & ~without).reshape(8, -1).sum(1) <= 1).all()
        changed += empty.any()
    assert changed > 0


def test_slice_that_is_sparse_already_keeps_a_weight_that_is_not_zero():
    for seed in range(10):
        model = net(seed=seed)
        weight = normed_weight(model).data
        weight.view(8, -1)[:, 2:] = 0
        with pytest.warns(UserWarning, match="sparse before"):
            wrap(model, density=0.1, seed=seed)
        assert not dead_slices(model, "filters")


def test_density_without_a_live_weight_for_each_slice_is_refused():
    with pytest.raises(ValueError, match=r"6 live weights.*8 slices along dim.*0\.0417 or more"):
        wrap(net(), density=0.03)
    with pytest.raises(ValueError, match=r"6 live weights.*8 slices"):
        wrap(net(), method=Pruning(scope="layer"), density=0.03)
    wrap(net("whole"), density=0.03)


def empty_rows(*rows):
    mask = torch.ones(8, 8, 3, dtype=torch.bool)
    mask[list(rows)] = False
    return mask


def test_given_mask_that_empties_slices_is_refused_by_their_numbers():
    with pytest.raises(ValueError, match=r"no live weight in slices 2, 5 along dimension 0"):
        wrap(net(), mask={"0": empty_rows(2, 5)})
    model = net()
    normed_weight(model).data[3] = 0
    with pytest.raises(ValueError, match=r"no live weight in slice 3 along dimension 0"):
        wrap(model, mask="nonzero")


def test_masks_that_would_leave_slices_zero_are_refused_and_change_nothing():
    model = net()
    optimizer = wrap(model, density=0.3)
    train(optimizer, loss_of(model), steps=3)
    before, weights = optimizer.masks[NAME], normed_weight(model).clone()
    with pytest.raises(ValueError, match=r"leaves slices 1, 2 along dimension 0 without"):
        optimizer.set_masks({"0": empty_rows(1, 2)})
    # Live afterwards, but every one of them starts at zero.
    elsewhere = before.clone()
    elsewhere[4] = ~before[4]
    with pytest.raises(ValueError, match=r"leaves slice 4 along dimension 0 without"):
        optimizer.set_masks({"0": elsewhere})
    assert torch.equal(optimizer.masks[NAME], before)
    assert torch.equal(normed_weight(model), weights)
    optimizer.set_masks({"0": before | torch.eye(8, dtype=torch.bool)[..., None]})
    train(optimizer, loss_of(model), steps=8)
    assert model[0].weight.isfinite().all()


def test_checkpoint_that_empties_a_slice_is_refused_and_changes_nothing():
    model = net()
    optimizer = wrap(model, density=0.3)
    train(optimizer, loss_of(model), steps=3)
    state, before = optimizer.state_dict(), optimizer.masks[NAME]
    (entry,) = (
        entry
        for entry in state["state"].values()
        if entry.get("sparse_mask", before[0]).shape == before.shape
    )
    entry["sparse_mask"][6] = False
    with pytest.raises(CheckpointError, match=r"no live weight in slice 6 along dimension 0"):
        optimizer.load_state_dict(state)
    assert torch.equal(optimizer.masks[NAME], before)


def test_checkpoint_goes_on_with_every_slice_protected():
    torch.manual_seed(0)
    model, again = net(), net()
    optimizer = wrap(model, density=0.09, alpha=1.0, delta_t=2)
    train(optimizer, loss_of(model), steps=5)
    again.load_state_dict(model.state_dict())
    resumed = wrap(again, density=0.09, alpha=1.0, delta_t=2, mask="magnitude")
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, stepped in ((model, optimizer), (again, resumed)):
        torch.manual_seed(1)
        train(stepped, loss_of(one), steps=15)
        assert not dead_slices(one, "filters")
    assert torch.equal(optimizer.masks[NAME], resumed.masks[NAME])


@dataclass(frozen=True)
class TooMany(Method):
    """Drops all live weights, and grows others."""

    name = "too-many"

    def moves(self, layers, update):
        return [Move(layer.live, layer.live) for layer in layers]

    def grow_scores(self, layer, update):
        return update.random_scores(layer)


@dataclass(frozen=True)
class Emptying(Method):
    """Exchanges live and dropped weights of the first slice; new ones begin at ``start``."""

    name = "emptying"
    start: float | None = None

    def moves(self, layers, update):
        moves = []
        for layer in layers:
            before, after = layer.mask.clone(), layer.mask.clone()
            after[0] = ~before[0]
            values = None if self.start is None else torch.full_like(layer.weight, self.start)
            stays = before & after
            moves.append(
                Rewiring(
                    drop=layer.live - int(stays.sum()),
                    grow=int(after.sum()) - int(stays.sum()),
                    survivors=stays.reshape(-1),
                    mask=after.reshape(-1),
                    values=values,
                )
            )
        return moves


def test_moves_of_ones_own_method_that_would_empty_slices_are_refused():
    model = net()
    optimizer = wrap(model, method=TooMany(), delta_t=1)
    before = optimizer.masks[NAME]
    with pytest.raises(ValueError, match=r"drop must be at most 30.*every slice of weight norm"):
        train(optimizer, loss_of(model), steps=1)
    assert torch.equal(optimizer.masks[NAME], before)
    for method in (Emptying(), Emptying(start=0.0)):
        optimizer = wrap(net(), method=method, delta_t=1)
        with pytest.raises(ValueError, match=r"after which 1 of 8 slices along dimension 0"):
            train(optimizer, loss_of(optimizer.model), steps=1)
    model = net()
    optimizer = wrap(model, method=Emptying(start=0.5), delta_t=1)
    train(optimizer, loss_of(model), steps=3)
    assert model[0].weight.isfinite().all()


def test_neurons_under_weight_norm_are_not_ablated():
    model = net()
    optimizer = wrap(model, method=SRigL(gamma=1.0), density=0.25, alpha=0.9, delta_t=2)
    train(optimizer, loss_of(model), steps=30)
    assert (optimizer.masks[NAME].flatten(1).sum(1) == 6).all()


def test_scores_of_ones_own_do_not_drop_the_largest_of_a_slice():
    """Its scores are the other way round: they drop the largest first."""
    model = net()
    method = Compose(drop=lambda layer, update: -layer.weight.abs(), grow="random")
    optimizer = wrap(model, method=method, density=0.1, delta_t=1, alpha=0.8)
    train(optimizer, loss_of(model), steps=20)
    assert not dead_slices(model, "filters")
    assert model[0].weight.isfinite().all()
