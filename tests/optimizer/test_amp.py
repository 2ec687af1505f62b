"""Mixed precision: torch's GradScaler, with steps that overflow."""

import numpy as np
import pytest
import torch

from sparseopt import SparseOptimizer
from tests.support.catalogue import build, implementations
from tests.support.looking import (
    assert_dropped_are_fresh,
    assert_same_weights,
    assert_unchanged,
    logical,
    snapshot,
)
from tests.support.nets import SPARSE_NAMES, loss_of, make
from tests.support.training import dense_gradients, train_step
from tests.support.wrapping import SETTINGS, wrap

INNER = [
    pytest.param(name, implementation, id="-".join([name, *implementation]))
    for name in ("SGD", "AdamW", "Adagrad")
    for implementation in implementations(name)
]


def scaled_backward(model, optimizer, scaler, index):
    optimizer.zero_grad()
    scaler.scale(loss_of(model, index)).backward()


@pytest.mark.parametrize(("name", "implementation"), INNER)
def test_scale_that_is_a_power_of_two_changes_nothing(name, implementation, state):
    """Scaling and unscaling by 2**10 is exact, so the run is the unscaled one to the last bit."""
    model, other = make(), make()
    scaled = SparseOptimizer(
        build(name, model.parameters(), **implementation), model, state=state, **SETTINGS
    )
    unscaled = SparseOptimizer(
        build(name, other.parameters(), **implementation), other, state=state, **SETTINGS
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for t in range(1, 21):
        scaled_backward(model, scaled, scaler, t)
        scaler.step(scaled)
        scaler.update()
        train_step(other, unscaled, t)
    assert_same_weights(model, other)
    assert scaled.history == unscaled.history
    assert scaled.steps == 20


@pytest.mark.parametrize("overflow_at", [3, 5])
@pytest.mark.parametrize(("name", "implementation"), INNER)
def test_overflow_advances_nothing_and_reaches_no_weight(name, implementation, overflow_at, state):
    """Step 3 is ordinary, step 5 is an update step."""
    model = make()
    optimizer = SparseOptimizer(
        build(name, model.parameters(), **implementation), model, state=state, **SETTINGS
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for t in range(1, overflow_at):
        scaled_backward(model, optimizer, scaler, t)
        scaler.step(optimizer)
        scaler.update()
    assert optimizer.is_update_step == (overflow_at == 5)

    before = snapshot(optimizer, model)
    scaled_backward(model, optimizer, scaler, overflow_at)
    live = optimizer.masks["fc1.weight"]
    model.fc1.weight.grad[tuple(live.nonzero()[0])] = float("inf")
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert_unchanged(before, snapshot(optimizer, model))
    assert optimizer.is_update_step == (overflow_at == 5)

    for t in range(overflow_at, 13):
        scaled_backward(model, optimizer, scaler, t)
        scaler.step(optimizer)
        scaler.update()
        assert_dropped_are_fresh(optimizer)
    assert [record.step for record in optimizer.history] == [5, 10]
    assert not any(record.skipped for record in optimizer.history)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_fused_inner_optimizer_does_not_take_over_unscaling():
    """GradScaler hands a fused optimizer the scale; the wrapper must read unscaled gradients."""
    model = make()
    inner = build("SGD", model.parameters(), fused=True)
    assert getattr(inner, "_step_supports_amp_scaling", False)
    optimizer = SparseOptimizer(inner, model, **SETTINGS)
    assert not getattr(optimizer, "_step_supports_amp_scaling", False)


def test_growth_reads_unscaled_gradients_and_clipping_works_in_between():
    model = make()
    optimizer = wrap(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for t in range(1, 11):
        expected = dense_gradients(model, t)
        updating = optimizer.is_update_step
        scaled_backward(model, optimizer, scaler, t)
        scaler.unscale_(optimizer)
        for name in SPARSE_NAMES:
            gradient = logical(expected[name])
            if not updating:
                gradient = np.where(logical(optimizer.masks[name]), gradient, 0)
            np.testing.assert_array_equal(
                logical(dict(model.named_parameters())[name].grad), gradient
            )
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    assert [record.step for record in optimizer.history] == [5, 10]


@pytest.mark.parametrize("method", ["set", "rigl"])
def test_autocast_trains_fp32_weights_sparse(method, state):
    model = make(channels_last=True)
    optimizer = wrap(model, method=method, state=state)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for t in range(1, 21):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, t)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert_dropped_are_fresh(optimizer)
    for layer in optimizer.layers:
        assert layer.weight.dtype == torch.float32
        assert layer.live == layer.target
    assert len(optimizer.history) == 4
