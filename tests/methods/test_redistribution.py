"""SNFS, RigL-SG and RigL-SM: budgets that move between layers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparseopt import SNFS, Redistributing, RigL, RigLSG, RigLSM, Smoothed, SparseOptimizer
from sparseopt.methods.redistribution import share_out
from tests import oracle
from tests.support.agreement import assert_run_is_that_by_hand, run_against_oracle
from tests.support.arithmetic import place_does_not_matter
from tests.support.catalogue import build
from tests.support.looking import (
    assert_dropped_are_fresh,
)
from tests.support.nets import SPARSE_NAMES, loss_of, make
from tests.support.oracles import oracle_for
from tests.support.training import train, train_step
from tests.support.wrapping import settings_with, wrap

STEPS = 40
SETTINGS = settings_with(total_steps=STEPS, delta_t=4, init="er")
METHODS = ["snfs", "rigl-sg", "rigl-sm"]


def wrapped(method, name, state, *, dtype=torch.float32, **changes):
    model = make(dtype=dtype)
    settings = {**SETTINGS, **changes}
    optimizer = wrap(model, name, method=method, state=state, **settings)
    return model, optimizer, oracle_for(method, model, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@pytest.mark.parametrize("method", METHODS)
def test_every_update_agrees_with_the_oracle(method, name, dtype, state):
    model, optimizer, reference = wrapped(method, name, state, dtype=dtype)
    before = {layer.name: layer.live for layer in optimizer.layers}
    assert run_against_oracle(model, optimizer, reference, STEPS) == 7
    after = {layer.name: layer.live for layer in optimizer.layers}
    assert sum(before.values()) == sum(after.values())
    assert before != after, "no budget moved"


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@pytest.mark.parametrize("method", METHODS)
def test_whole_run_agrees_with_a_dense_run_masked_by_hand(method, name, state):
    if state == "live" and not place_does_not_matter(name, {}, torch.float32):
        pytest.skip("torch's own last bit depends on the place")
    model, optimizer, reference = wrapped(method, name, state)
    assert_run_is_that_by_hand(name, model, optimizer, reference, STEPS)


@pytest.mark.parametrize("beta", [0.5, 0.9])
@pytest.mark.parametrize(
    "method_of",
    [lambda beta: SNFS(momentum=beta), lambda beta: RigLSM(gradient=Smoothed(beta))],
    ids=["snfs", "rigl-sm by dense gradients"],
)
def test_budgets_and_growth_follow_the_momentum_that_was_asked_for(method_of, beta):
    """RigL-SM that accumulates dense gradients, and grows by them, is SNFS."""
    model = make()
    optimizer = wrap(model, "SGD", method=method_of(beta), **SETTINGS)
    reference = oracle_for("snfs", model, **SETTINGS)
    reference.momentum = oracle.Momentum(beta)
    assert run_against_oracle(model, optimizer, reference, STEPS) == 7


def test_snfs_grows_alike_whatever_the_inner_optimizer_keeps():
    """Plain SGD has no momentum that the method could read, and AdamW's is of live weights only."""
    for name, state in (("SGD", "live"), ("AdamW", "live"), ("AdamW", "masked")):
        model, optimizer, reference = wrapped("snfs", name, state)
        for group in optimizer.param_groups:
            if "momentum" in group:
                group["momentum"] = 0.0
        assert run_against_oracle(model, optimizer, reference, 20) == 5


@pytest.mark.parametrize("alpha", [0.9, 1.0])
@pytest.mark.parametrize("density", [0.02, 0.9])
@pytest.mark.parametrize("method", METHODS)
def test_total_is_exact_and_no_layer_is_over_full_or_empty(method, density, alpha):
    model = make()
    optimizer = SparseOptimizer(
        build("SGD", model.parameters()),
        model,
        method=method,
        density=density,
        alpha=alpha,
        decay="constant",
        init="er",
        t_end=100,
        delta_t=2,
    )
    total = sum(layer.live for layer in optimizer.layers)

    def check(_):
        assert sum(layer.live for layer in optimizer.layers) == total
        for layer in optimizer.layers:
            assert 1 <= layer.live == int(layer.mask.sum()) <= layer.numel
        assert_dropped_are_fresh(optimizer)

    train(model, optimizer, 20, after=check)
    assert len(optimizer.history) == 10


@given(st.data())
def test_parts_add_up_and_fit_whatever_the_shares(data):
    layers = data.draw(st.integers(1, 6))
    room = data.draw(st.lists(st.integers(0, 50), min_size=layers, max_size=layers))
    share = st.one_of(st.just(0.0), st.floats(2.0**-20, 2.0**20, width=32))
    shares = data.draw(st.lists(share, min_size=layers, max_size=layers))
    total = data.draw(st.integers(0, sum(room)))
    parts = share_out(total, shares, room)
    assert sum(parts) == total
    assert all(0 <= part <= most for part, most in zip(parts, room, strict=True))
    exact = oracle.water_level(total, shares, room)
    assert all(abs(part - other) <= 1 for part, other in zip(parts, exact, strict=True))


@pytest.mark.parametrize(
    ("total", "shares", "room", "parts"),
    [
        (10, [1, 1], [50, 50], [5, 5]),
        (10, [3, 1], [50, 50], [8, 2]),  # 7.5 and 2.5: the tie goes to the earlier one
        (10, [9, 1], [4, 50], [4, 6]),
        (10, [9, 3, 1], [4, 4, 50], [4, 4, 2]),
        (10, [1, 0], [4, 50], [4, 6]),
        (10, [0, 1, 0], [10, 4, 20], [2, 4, 4]),
        (0, [1, 2], [0, 0], [0, 0]),
        (1, [0.4, 0.6], [1, 1], [0, 1]),
    ],
)
def test_shares_by_hand(total, shares, room, parts):
    assert share_out(total, shares, room) == parts == oracle.water_level(total, shares, room)


def test_total_above_all_capacities_is_refused():
    with pytest.raises(ValueError, match="total=5"):
        share_out(5, [1.0], [4])


def two_layers(method, gradients, *, state="auto", step=1):
    """Two rows of six weights, three live in each; steps with the gradients that are given."""
    model = nn.ModuleList([nn.Linear(6, 1, bias=False) for _ in range(2)])
    mask = torch.tensor([[True, True, True, False, False, False]])
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.0),
        model,
        method=method,
        mask={"0": mask, "1": mask},
        delta_t=len(gradients),
        alpha=0.7,
        decay="constant",
        t_end=100,
        state=state,
    )
    for row in gradients:
        for layer, gradient in zip(optimizer.layers, row, strict=True):
            layer.weight.grad = torch.tensor([gradient])
        optimizer.step()
    return optimizer


def test_rigl_sg_gives_more_to_the_layer_of_larger_gradients():
    gradients = [([3.0, 3, 3, 1, 1, 1], [1.0, 1, 1, 9, 9, 9])]
    optimizer = two_layers(RigLSG(), gradients)
    assert [layer.live for layer in optimizer.layers] == [1 + 3, 1 + 1]


def test_snfs_remembers_steps_long_past_and_rigl_sg_does_not():
    gradients = [
        ([100.0, 100, 100, 5, 0, 100], [1.0, 1, 1, 1, 1, 1]),
        ([1.0, 1, 1, 9, 9, 1], [3.0, 3, 3, 1, 1, 1]),
    ]
    snfs, by_gradient = two_layers("snfs", gradients), two_layers("rigl-sg", gradients)
    assert [layer.live for layer in snfs.layers] == [1 + 4, 1 + 0]
    assert [layer.live for layer in by_gradient.layers] == [1 + 1, 1 + 3]
    assert bool(snfs.layers[0].mask[0, 5])
    assert not bool(by_gradient.layers[0].mask[0, 5])


def test_layers_that_do_not_matter_at_all_keep_their_counts():
    nothing = [([0.0] * 6, [0.0] * 6)]
    for method in METHODS:
        assert [layer.live for layer in two_layers(method, nothing).layers] == [3, 3]


def test_dense_layers_and_layers_without_a_gradient_stay_out_of_it(state):
    model = make()
    settings = {**SETTINGS, "init": {"conv1": 1.0}, "state": state}
    optimizer = wrap(model, method="snfs", **settings)
    frozen = model.fc1.weight
    before = optimizer.masks["fc1.weight"].clone()
    for t in range(1, 13):
        optimizer.zero_grad()
        loss_of(model, t).backward()
        frozen.grad = None
        optimizer.step()
    assert torch.equal(optimizer.masks["fc1.weight"], before)
    assert optimizer.masks["conv1.weight"].all()
    assert optimizer.history[-1].dropped > 0


def test_update_with_regrow_never_grows_no_weight_it_dropped():
    model = make()
    optimizer = wrap(model, method=SNFS(regrow="never"), **SETTINGS)
    total = sum(layer.live for layer in optimizer.layers)
    for t in range(1, 21):
        old = {name: mask.clone() for name, mask in optimizer.masks.items()}
        train_step(model, optimizer, t)
        if optimizer.history and optimizer.history[-1].step == t:
            grown = sum(int((optimizer.masks[n] & ~old[n]).sum()) for n in SPARSE_NAMES)
            assert grown == optimizer.history[-1].grown == optimizer.history[-1].dropped > 0
    assert sum(layer.live for layer in optimizer.layers) == total


def test_momentum_out_of_range_is_refused():
    with pytest.raises(ValueError, match=r"momentum=1\.0"):
        SNFS(momentum=1.0)
    with pytest.raises(TypeError, match="gradient='smoothed'"):
        RigL(gradient="smoothed")
    with pytest.raises(TypeError, match="dense"):
        RigLSM(gradient=Smoothed(dense=False))
    assert issubclass(SNFS, Redistributing)
