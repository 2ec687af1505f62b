"""Closures, and LBFGS that needs them."""

import numpy as np
import pytest
import torch

from sparseopt import SparseOptimizer
from tests.support.catalogue import build
from tests.support.looking import assert_dropped_are_fresh, assert_same_weights, logical
from tests.support.nets import loss_of, make
from tests.support.training import train, train_step
from tests.support.wrapping import SETTINGS, wrap


def closure_of(model, optimizer, index, seen=None):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, index)
        loss.backward()
        if seen is not None:
            seen.append({n: logical(p.grad) for n, p in model.named_parameters()})
        return loss

    return closure


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_closure_gives_the_same_weights_as_none(name, state):
    model, other = make(), make()
    with_closure = wrap(model, name, state=state)
    without = wrap(other, name, state=state)
    for t in range(1, 21):
        expected = loss_of(other, t).item()
        loss = with_closure.step(closure_of(model, with_closure, t))
        train_step(other, without, t)
        assert loss.item() == expected
    assert_same_weights(model, other)
    assert [r.step for r in with_closure.history] == [r.step for r in without.history]


def test_closure_is_evaluated_once_on_an_update_step_and_its_loss_returned():
    model = make()
    optimizer = wrap(model)
    train(model, optimizer, 4)
    assert optimizer.is_update_step
    expected, seen = loss_of(model, 5).item(), []
    loss = optimizer.step(closure_of(model, optimizer, 5, seen))
    assert loss.item() == expected
    assert len(seen) == 1
    assert len(optimizer.history) == 1


def test_first_step_of_a_warm_up_from_zero_counts_and_trains_the_sparse_model(state):
    """Before the closure has run, it looks like the step by which torch only makes state."""
    model, other = make(), make()
    with_closure = wrap(model, "AdamW", state=state)
    without = wrap(other, "AdamW", state=state)
    schedulers = [
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: min(1.0, t / 5))
        for optimizer in (with_closure, without)
    ]
    for t in range(1, 13):
        expected = train_step(other, without, t)
        assert with_closure.step(closure_of(model, with_closure, t)) == expected
        assert with_closure.steps == t
        assert_dropped_are_fresh(with_closure)
        for scheduler in schedulers:
            scheduler.step()
    assert_same_weights(model, other)
    assert [record.step for record in with_closure.history] == [5, 10]


def test_closure_may_run_under_no_grad():
    """torch's optimizers turn gradients on for the closure; so does the wrapper."""
    model = make()
    optimizer = wrap(model)
    with torch.no_grad():
        for t in range(1, 7):
            loss = optimizer.step(closure_of(model, optimizer, t))
            assert torch.isfinite(loss)
    assert len(optimizer.history) == 1


def test_gradients_are_masked_inside_the_closure_of_lbfgs():
    model = make()
    optimizer = wrap(model, "LBFGS")
    for t in range(1, 5):
        seen = []
        optimizer.step(closure_of(model, optimizer, t, seen))
        assert len(seen) > 1
        for gradients in seen:
            for layer in optimizer.layers:
                dropped = ~logical(layer.mask)
                assert not gradients[layer.name][dropped].any()


def test_model_is_sparse_whenever_lbfgs_evaluates_it():
    model = make()
    optimizer = wrap(model, "LBFGS")

    def closure():
        assert_no_dropped_weight()
        optimizer.zero_grad()
        loss = loss_of(model, 1)
        loss.backward()
        return loss

    def assert_no_dropped_weight():
        for layer in optimizer.layers:
            assert not logical(layer.weight)[~logical(layer.mask)].any()

    for _ in range(12):
        optimizer.step(closure)
        assert_no_dropped_weight()


def flat_positions_of_dropped(model, optimizer):
    return np.concatenate(
        [
            ~logical(optimizer.masks[name])
            if name in optimizer.masks
            else np.zeros(p.numel(), dtype=bool)
            for name, p in model.named_parameters()
        ]
    )


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_lbfgs_history_knows_no_dropped_weight_and_is_reset_by_an_update(line_search):
    model = make()
    # The history takes two iterations of a step to begin, and by default a line search may spend
    # all of a step's evaluations on the first.
    inner = build("LBFGS", model.parameters(), line_search_fn=line_search, max_eval=200)
    optimizer = SparseOptimizer(inner, model, **SETTINGS)
    for t in range(1, 21):
        updating = optimizer.is_update_step
        train_step(model, optimizer, t)
        entry = inner.state.get(next(model.parameters()), {})
        history = entry.get("old_dirs") or []
        # The network dies in the end, and where every gradient is zero nothing moves.
        if updating and optimizer.history[-1].grown:
            assert history == []
            assert entry.get("prev_flat_grad") is None
        else:
            assert len(history) > 0
        dropped = flat_positions_of_dropped(model, optimizer)
        for vector in [*history, *(entry.get("old_stps") or []), entry.get("d")]:
            if vector is not None:
                assert not logical(vector)[dropped].any()
        assert_dropped_are_fresh(optimizer)


def test_lbfgs_learns_under_a_mask():
    model = make()
    optimizer = SparseOptimizer(
        build("LBFGS", model.parameters(), line_search_fn="strong_wolfe"), model, **SETTINGS
    )
    before = loss_of(model, 1).item()
    for _ in range(15):
        optimizer.step(closure_of(model, optimizer, 1))
    assert loss_of(model, 1).item() < 0.5 * before


class LooksAround(torch.optim.SGD):
    """Evaluates the closure at a point that it moved every weight to, dropped ones included."""

    @torch.no_grad()
    def step(self, closure):
        parameters = [p for group in self.param_groups for p in group["params"]]
        for p in parameters:
            p.add_(0.01)
        with torch.enable_grad():
            loss = closure()
        for p in parameters:
            p.sub_(0.01)
        super().step()
        return loss


def test_closure_sees_a_sparse_model_even_if_the_optimizer_moved_dropped_weights():
    model = make()
    inner = LooksAround(model.parameters(), lr=0.05)
    optimizer = SparseOptimizer(inner, model, **SETTINGS)
    for t in range(1, 12):
        if optimizer.is_update_step:
            optimizer.step(closure_of(model, optimizer, t))
            continue

        def closure(t=t):
            for layer in optimizer.layers:
                assert not logical(layer.weight)[~logical(layer.mask)].any()
            return closure_of(model, optimizer, t)()

        optimizer.step(closure)
        assert_dropped_are_fresh(optimizer)
