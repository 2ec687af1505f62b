"""The choice of implementations follows the measured times, and measuring changes nothing."""

import json
import logging
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from sparseopt import speed_up
from sparseopt.speedup.live_training import measurement
from sparseopt.speedup.live_training.measurement import fastest
from sparseopt.speedup.live_training.plan import nearest
from sparseopt.speedup.timing import Timing
from tests.speedup.kernels.dense import needs_kernels
from tests.speedup.live_training.nets import (
    ConvNet,
    Tokens,
    images,
    loss_of,
    make,
    train,
    wrap,
)

pytestmark = needs_kernels


class Timer:
    """Runs every call once, and returns the time that a table has for its name."""

    def __init__(self, **seconds):
        self.seconds = seconds
        self.calls = []

    def __call__(self, calls, rounds):
        for name, call in calls.items():
            self.calls.append(name)
            call()
        return {name: Timing((self.seconds.get(name, 1.0),) * rounds) for name in calls}


@pytest.fixture
def clock(monkeypatch):
    """Replace measured times by the test's times, by name of the call."""

    def install(**seconds):
        timer = Timer(**{name.replace("_", " "): value for name, value in seconds.items()})
        monkeypatch.setattr(measurement, "_timed_in_turn", timer)
        return timer

    return install


def test_convolutions_are_exchanged_if_the_whole_model_is_faster(clock):
    clock(live=0.5, convolutions=0.5)
    model = make()
    optimizer = wrap(model, init="uniform")
    handle = speed_up(model, optimizer)
    assert handle.plan == {}
    train(model, optimizer, 1)
    assert handle.plan["block.conv1"] == {"6x8x9x9": "live"}
    assert handle.plan["grouped"] == {"6x12x5x5": "converted"}
    assert handle.plan["block.shortcut"] == {"6x8x9x9": "live"}
    assert type(model.block.conv1) is not nn.Conv2d
    assert "chosen: convolutions" in handle.report
    assert "block.conv1" in handle.report


def test_report_says_what_a_pass_is_made_of(clock):
    clock(live=0.5, convolutions=0.5)
    model = make()
    optimizer = wrap(model, init="uniform")
    handle = speed_up(model, optimizer)
    train(model, optimizer, 1)
    assert "operations of such a pass, ms: " in handle.report
    assert "convolutions by kernels, backward" in handle.report


def test_model_can_be_measured_before_its_first_pass(clock):
    timer = clock(live=0.5, convolutions=0.5)
    model = make()
    optimizer = wrap(model, init="uniform")
    handle = speed_up(model, optimizer)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    handle.measure(images())
    assert handle.plan["block.conv1"] == {"6x8x9x9": "live"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    measured = len(timer.calls)
    handle.measure(images())
    train(model, optimizer, 1)
    assert len(timer.calls) == measured
    handle.undo()
    with pytest.raises(RuntimeError, match="has ended"):
        handle.measure(images())


def test_plan_that_is_given_is_not_measured(clock):
    timer = clock()
    model = make()
    optimizer = wrap(model)
    handle = speed_up(model, optimizer, plan={})
    handle.measure(images())
    assert not timer.calls


def test_convolutions_stay_if_they_are_faster_and_the_whole_model_is_not(clock):
    """ERK at a density of .2 was slower than dense by a rule for single layers."""
    clock(live=0.5, linear_layers=2.0, both=2.0)
    model = make()
    optimizer = wrap(model, init="uniform")
    handle = speed_up(model, optimizer)
    train(model, optimizer, 2)
    assert {chosen for choices in handle.plan.values() for chosen in choices.values()} == {"dense"}
    assert type(model.block.conv1) is nn.Conv2d
    assert type(model.block.norm1) is nn.BatchNorm2d
    assert "nothing is faster" in handle.report


class DropoutByFunction(nn.Sequential):
    def forward(self, x):
        return self[1](F.dropout(self[0](x)))


def test_slow_calls_are_named_if_nothing_is_faster_because_of_them(clock):
    clock(live=0.5, convolutions=2.0)
    model = DropoutByFunction(nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 8, 3))
    optimizer = wrap(model)
    handle = speed_up(model, optimizer)
    model(torch.randn(32, 3, 32, 32)).sum().backward()
    assert "nothing is faster" in handle.report
    assert "slow: torch.nn.functional.dropout" in handle.report
    assert "operations of such a pass" not in handle.report
    assert all(type(module) is nn.Conv2d for module in model)


def test_linear_layers_are_exchanged_alone_if_that_is_fastest(clock):
    clock(live=0.5, convolutions=0.9, linear_layers=0.4, both=0.6)
    model = make()
    optimizer = wrap(model)
    handle = speed_up(model, optimizer)
    train(model, optimizer, 1)
    assert handle.plan["hidden"] == {"6x22": "live"}
    assert type(model.hidden) is not nn.Linear
    assert type(model.stem) is nn.Conv2d


def test_linear_layers_are_not_tried_in_the_model_if_none_is_faster(clock):
    timer = clock(live=1.5)
    model = make(Tokens)
    optimizer = wrap(model)
    speed_up(model, optimizer)
    train(model, optimizer, 1)
    assert set(timer.calls) == {"dense", "live"}
    assert type(model.up) is nn.Linear


@pytest.mark.parametrize(
    ("other", "chosen"),
    [
        ((0.9, 0.9, 0.9, 0.9), "other"),
        ((1.1, 1.1, 1.1, 1.1), "dense"),
        ((0.1, 0.1, 1.1, 1.1), "dense"),
        ((0.9, 0.9, 0.9, 1.2), "other"),
    ],
)
def test_spread_of_the_measurement_decides(other, chosen):
    assert fastest({"dense": Timing((1.0,) * 4), "other": Timing(other)}) == chosen


def state_of(model):
    return {
        "random": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002
        "buffers": {name: one.clone() for name, one in model.named_buffers()},
        "versions": [one._version for one in (*model.parameters(), *model.buffers())],
        "gradients": [one.grad for one in model.parameters()],
        "modes": [module.training for module in model.modules()],
    }


def test_measuring_leaves_no_trace(clock):
    clock(convolutions=2.0, both=2.0)
    model = make(p=0.5)
    optimizer = wrap(model)
    model.head.eval()
    called = []
    model.block.register_forward_hook(lambda *_: called.append(1))
    model.block.register_full_backward_hook(lambda *_: called.append(1))
    speed_up(model, optimizer)
    before = state_of(model)
    seen = []
    # Called after the hook that measures, before anything is computed.
    model.stem.register_forward_pre_hook(lambda *_: seen.append(state_of(model)))
    x = images()
    model(x)
    assert str(seen[0]) == str(before)
    assert called == [1]
    assert x.grad is None


def test_failure_to_measure_leaves_training_dense_and_one_line_says_so(caplog, monkeypatch):
    def fail(*_):
        raise MemoryError("no room")

    monkeypatch.setattr(measurement, "training_pass", fail)
    model = make()
    optimizer = wrap(model)
    handle = speed_up(model, optimizer)
    with caplog.at_level(logging.WARNING, "sparseopt"):
        losses = train(model, optimizer, 3)
    messages = [record.message for record in caplog.records]
    assert messages == ["speed_up: training stays dense: measuring failed (no room)"]
    assert "no room" in handle.report
    plain = make()
    assert train(plain, wrap(plain), 3) == losses


def test_model_that_cannot_be_copied_trains_on_densely(caplog):
    model = make()
    model.owner = (one for one in [1])  # a generator can't be copied
    optimizer = wrap(model)
    speed_up(model, optimizer)
    with caplog.at_level(logging.WARNING, "sparseopt"):
        train(model, optimizer, 2)
    assert len(caplog.records) == 1
    assert "measuring failed" in caplog.records[0].message


@pytest.mark.parametrize("kind", [ConvNet, Tokens])
def test_plan_that_was_saved_gives_the_same_bits_and_measures_nothing(clock, kind):
    timer = clock(live=0.5, convolutions=0.5, linear_layers=0.6, both=0.4)
    model = make(kind)
    optimizer = wrap(model)
    handle = speed_up(model, optimizer)
    losses = train(model, optimizer, 8)
    plan = json.loads(json.dumps(handle.plan))
    assert "live" in str(plan)
    timer.calls.clear()

    other = make(kind)
    other_optimizer = wrap(other)
    other_handle = speed_up(other, other_optimizer, plan=plan)
    assert train(other, other_optimizer, 8) == losses
    assert timer.calls == []
    assert other_handle.plan == plan
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_measurement_chooses_what_the_first_pass_runs_by(clock):
    """A run that measures and a run with the plan are equal from the first step on."""
    clock(live=0.5, both=0.5)
    model = make()
    optimizer = wrap(model)
    handle = speed_up(model, optimizer)
    model(images())
    assert "live" in str(handle.plan)
    assert type(model.stem) is not nn.Conv2d


def test_other_shapes_are_measured_when_they_come_again_and_at_most_four(clock):
    timer = clock(live=0.5, both=0.5)
    model = make()
    optimizer = wrap(model)
    handle = speed_up(model, optimizer)

    def measured():
        times, timer.calls[:] = timer.calls.count("both"), []
        return times

    for size, expected in [(6, 1), (6, 0), (3, 0), (3, 1), (3, 0)]:
        loss_of(model, size=size)
        assert measured() == expected
    assert handle.plan["stem"].keys() == {"6x3x9x9", "3x3x9x9"}
    for size in range(7, 30):
        loss_of(model, size=size)
        loss_of(model, size=size)
    assert measured() == 2
    assert len(handle.plan["stem"]) == 4


def test_another_density_is_measured_again(clock):
    timer = clock(live=0.5, both=0.5)
    model = make()
    optimizer = wrap(model, method="pruning", density=0.1, total_steps=100, delta_t=5)
    handle = speed_up(model, optimizer)
    assert optimizer.density == 1
    train(model, optimizer, 1)
    assert "live" not in str(handle.plan)
    train(model, optimizer, 85)
    assert optimizer.density == pytest.approx(0.1, abs=1e-3)
    assert handle.plan["block.conv1"] == {"6x8x9x9": "live"}
    # Down to a tenth by factors of two thirds and less.
    assert 2 <= timer.calls.count("both") <= 6


def test_update_step_is_not_measured(clock):
    timer = clock()
    model = make()
    optimizer = wrap(model, method="rigl", delta_t=1)
    speed_up(model, optimizer)
    train(model, optimizer, 2)
    assert timer.calls == []


def test_pass_that_backward_repeats_is_not_measured(clock):
    timer = clock()
    model = make(p=0.5)
    optimizer = wrap(model)
    speed_up(model, optimizer)
    out = checkpoint(model, images().requires_grad_(), use_reentrant=True)
    out.square().sum().backward()
    assert timer.calls == []


def test_evaluation_is_not_measured(clock):
    timer = clock()
    model = make()
    optimizer = wrap(model)
    speed_up(model, optimizer)
    with torch.no_grad():
        model(images())
    model.eval()(images())
    assert timer.calls == []


def test_shape_that_was_not_measured_goes_by_the_nearest():
    choices = {(128, 16, 32, 32): "live", (2, 16, 32, 32): "dense"}
    assert nearest(choices, (100, 16, 32, 32)) == "live"
    assert nearest(choices, (1, 16, 8, 8)) == "dense"


def test_real_measurement_reports_every_layer():
    model = make()
    optimizer = wrap(model)
    handle = speed_up(model, optimizer)
    train(model, optimizer, 2)
    for layer in optimizer.layers:
        assert layer.name.removesuffix(".weight") in handle.report
    assert "forward and backward pass of the whole model" in handle.report
