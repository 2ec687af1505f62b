"""When masks move, and how much, seen in the history of real runs."""

import math
import warnings

import pytest
import torch

from sparseopt import SparseOptimizer
from tests import oracle
from tests.support.catalogue import build
from tests.support.nets import make


def run(steps, **settings):
    """The history of `steps` steps with random gradients."""
    model = make()
    optimizer = SparseOptimizer(
        build("SGD", model.parameters()), model, **{"density": 0.5, "init": "er", **settings}
    )
    for _ in range(steps):
        step(model, optimizer)
    return optimizer


def step(model, optimizer):
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()


@pytest.mark.parametrize("delta_t", [1, 3, 7])
@pytest.mark.parametrize("total_steps", [20, 40, 41, 43])
@pytest.mark.parametrize("method", ["set", "rigl"])
def test_updates_fall_on_every_multiple_before_the_end(method, total_steps, delta_t):
    optimizer = run(total_steps, method=method, total_steps=total_steps, delta_t=delta_t)
    t_end = int(0.75 * total_steps)
    expected = [t for t in range(1, total_steps + 1) if t % delta_t == 0 and t < t_end]
    assert [record.step for record in optimizer.history] == expected


def test_end_itself_is_no_update_step():
    """t_end = 30 is a multiple of 10, and the last update is at 20."""
    optimizer = run(40, total_steps=40, delta_t=10)
    assert [record.step for record in optimizer.history] == [10, 20]


def test_t_end_may_be_given_itself():
    assert [r.step for r in run(40, t_end=35, delta_t=10).history] == [10, 20, 30]
    both = run(40, total_steps=40, t_end=12, delta_t=10)
    assert [r.step for r in both.history] == [10]


@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0])
def test_cosine_decay(alpha):
    optimizer = run(40, total_steps=40, delta_t=4, alpha=alpha)
    for record in optimizer.history:
        assert record.fraction == pytest.approx(oracle.cosine_fraction(alpha, record.step, 30))


def test_linear_and_constant_decay():
    linear = run(40, total_steps=40, delta_t=4, alpha=0.4, decay="linear")
    constant = run(40, total_steps=40, delta_t=4, alpha=0.4, decay="constant")
    for record in linear.history:
        assert record.fraction == pytest.approx(0.4 * (1 - record.step / 30))
    assert [record.fraction for record in constant.history] == [0.4] * 7


def test_layer_drops_the_integer_part_of_its_share():
    optimizer = run(40, total_steps=40, delta_t=4, alpha=0.3)
    for record in optimizer.history:
        fraction = oracle.cosine_fraction(0.3, record.step, 30)
        sparse = [layer for layer in optimizer.layers if layer.density < 1]
        expected = sum(int(fraction * layer.live) for layer in sparse)
        assert record.dropped == record.grown == expected


def test_alpha_one_may_drop_everything_and_still_keeps_the_count():
    model = make()
    optimizer = SparseOptimizer(
        build("SGD", model.parameters()), model, density=0.1, delta_t=1, t_end=100, alpha=1.0
    )
    counts = [layer.live for layer in optimizer.layers]
    for _ in range(20):
        step(model, optimizer)
        assert [int(layer.mask.sum()) for layer in optimizer.layers] == counts


# ------------------------------------------------------------------------------- the horizon


def test_fraction_stays_at_alpha_without_a_horizon_and_one_warning_says_what_to_pass():
    with pytest.warns(UserWarning, match="total_steps") as caught:
        optimizer = run(25, delta_t=5, alpha=0.2)
    assert len(caught) == 1
    assert [record.step for record in optimizer.history] == [5, 10, 15, 20, 25]
    assert [record.fraction for record in optimizer.history] == [0.2] * 5


def test_static_mask_needs_no_horizon():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(12, method="static", delta_t=5).history == []


def test_density_one_needs_no_horizon():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(12, density=1.0, delta_t=5).history == []


def test_horizon_before_the_first_update_is_static_and_warns_once():
    with pytest.warns(UserWarning, match="delta_t") as caught:
        optimizer = run(30, total_steps=30, delta_t=100)
    assert len(caught) == 1
    assert "100" in str(caught[0].message)
    assert optimizer.history == []
    assert not optimizer.is_update_step


def test_horizon_may_come_later():
    """The length of the loader is often known only after the optimizer was made."""
    model, other = make(), make()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        late = SparseOptimizer(build("SGD", model.parameters()), model, delta_t=4, seed=3)
        late.set_horizon(40)
        early = SparseOptimizer(
            build("SGD", other.parameters()), other, delta_t=4, seed=3, total_steps=40
        )
        for t in range(40):
            torch.manual_seed(t)
            step(model, late)
            torch.manual_seed(t)
            step(other, early)
    assert late.history == early.history
    assert late.history[-1].step == 28
    assert all(torch.equal(late.masks[name], mask) for name, mask in early.masks.items())


def test_longer_horizon_in_mid_training_goes_on_decaying():
    model = make()
    optimizer = SparseOptimizer(
        build("SGD", model.parameters()), model, delta_t=4, total_steps=40, density=0.5
    )
    for _ in range(20):
        step(model, optimizer)
    optimizer.set_horizon(80)
    for _ in range(40):
        step(model, optimizer)
    assert [record.step for record in optimizer.history] == list(range(4, 60, 4))
    for record in optimizer.history:
        t_end = 30 if record.step <= 20 else 60
        assert record.fraction == pytest.approx(oracle.cosine_fraction(0.3, record.step, t_end))


@pytest.mark.parametrize("steps", [0, -5])
def test_horizon_of_no_steps_is_refused(steps):
    model = make()
    optimizer = SparseOptimizer(build("SGD", model.parameters()), model, total_steps=10, delta_t=2)
    with pytest.raises(ValueError, match=str(steps)):
        optimizer.set_horizon(steps)


# -------------------------------------------------------------------------- the history itself


def test_history_tells_what_happened():
    """`new` and `explored` recomputed from the masks themselves."""
    model = make()
    optimizer = SparseOptimizer(
        build("SGD", model.parameters()), model, density=0.2, delta_t=3, total_steps=40
    )
    total = sum(layer.numel for layer in optimizer.layers)
    ever = {name: mask.clone() for name, mask in optimizer.masks.items()}
    while len(optimizer.history) < 8:
        before = {name: mask.clone() for name, mask in optimizer.masks.items()}
        updating = optimizer.is_update_step
        step(model, optimizer)
        if not updating:
            continue
        record = optimizer.history[-1]
        live = sum(int(mask.sum()) for mask in optimizer.masks.values())
        new = sum(int((mask & ~before[name]).sum()) for name, mask in optimizer.masks.items())
        for name, mask in optimizer.masks.items():
            ever[name] |= mask
        assert record.step == optimizer.steps
        assert record.density == pytest.approx(live / total) == pytest.approx(optimizer.density)
        assert math.isclose(record.new, new / live)
        assert math.isclose(record.explored, sum(int(m.sum()) for m in ever.values()) / total)
        assert record.skipped is False


def test_summary_is_a_table_by_layer():
    optimizer = run(9, total_steps=40, delta_t=4, density=0.1, init="erk")
    text = optimizer.summary()
    for layer in optimizer.layers:
        line = next(line for line in text.splitlines() if layer.name in line)
        assert f"{layer.live:,}" in line or str(layer.live) in line
        for size in layer.weight.shape:
            assert str(size) in line
    assert isinstance(text, str)


def test_summary_shows_what_the_last_update_moved():
    model = make()
    optimizer = SparseOptimizer(
        build("SGD", model.parameters()), model, density=0.2, delta_t=4, t_end=100, alpha=0.5
    )
    for _ in range(4):
        step(model, optimizer)
    fraction = optimizer.history[-1].fraction
    for layer in optimizer.layers:
        if layer.density < 1:
            moved = int(fraction * layer.live)
            line = next(line for line in optimizer.summary().splitlines() if layer.name in line)
            assert line.split().count(str(moved)) >= 2, line
