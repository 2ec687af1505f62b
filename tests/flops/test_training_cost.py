"""The cost of a run so far and until its horizon, and its report."""

import json
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from sparseopt import MEST, Accumulated, Method, Move, Pruning, RigL, Smoothed, SparseOptimizer
from tests.support.nets import make
from tests.support.training import train
from tests.support.wrapping import settings_with

X = torch.zeros(1, 3, 6, 6)
POSITIONS = {"conv1.weight": 36, "conv2.weight": 9, "fc1.weight": 1, "fc2.weight": 1}
LINEAR_BIASES = 16 + 5


def wrap(model, **changes):
    # Without momentum: torch shares buffers between an optimizer and one that loads its state.
    inner = torch.optim.SGD(model.parameters(), lr=0.01)
    return SparseOptimizer(inner, model, **settings_with(**{"delta_t": 4, **changes}))


def inference(live):
    """By hand: two FLOPs for a live weight at each position."""
    return LINEAR_BIASES + sum(2 * POSITIONS[name] * count for name, count in live.items())


def live_counts(optimizer):
    return {layer.name: layer.live for layer in optimizer.layers}


F_DENSE = inference({name: p.numel() for name, p in make().named_parameters() if p.dim() > 1})


@dataclass(frozen=True)
class Thinning(Method):
    """Drops a tenth of each layer at every update, and reads dense gradients."""

    name: ClassVar[str] = "thinning"
    needs_dense_gradient: ClassVar[bool] = True

    def moves(self, layers, update):
        return [Move(layer.live // 10, 0) for layer in layers]


def test_cost_so_far_is_kept_if_only_the_loading_run_has_names():
    model, other_model = make(), make()
    inner = torch.optim.SGD(model.parameters(), lr=0.01)
    optimizer = SparseOptimizer(inner, **settings_with(delta_t=4, method=Thinning()))
    train(model, optimizer, 14)
    other = wrap(other_model, method=Thinning())
    other_model.load_state_dict(model.state_dict())
    other.load_state_dict(optimizer.state_dict())
    for steps in (0, 12):
        train(model, optimizer, steps, start=14)
        train(other_model, other, steps, start=14)
        expected, found = optimizer.flops(model, X), other.flops(other_model, X)
        assert found.train_measured == expected.train_measured
        assert expected.train_measured < 3 * F_DENSE


@pytest.mark.parametrize("method", ["static", "set", "rigl", "pruning", Thinning()])
def test_training_so_far_is_integrated_over_the_masks_that_were(method):
    """The sum is exact, also if live counts change and gradients are dense at some steps."""
    model = make()
    optimizer = wrap(model, method=method)
    dense_gradient = optimizer.method.needs_dense_gradient
    total, live = 0, live_counts(optimizer)
    for step in range(1, 31):
        update = optimizer.is_update_step
        train(model, optimizer, 1, start=step - 1)
        f_s = inference(live)
        total += 2 * f_s + F_DENSE if update and dense_gradient else 3 * f_s
        live = live_counts(optimizer)
    report = optimizer.flops(model, X)
    assert report.steps == 30
    assert report.total_steps == 40
    assert report.train_so_far == pytest.approx(total)
    assert report.train_measured == pytest.approx(total / 30)


@pytest.mark.parametrize(
    "method",
    [
        "static",
        "set",
        "rigl",
        "srigl",
        MEST(bound="hard"),
        RigL(gradient=Smoothed(0.9)),
        RigL(gradient=Accumulated(3)),
    ],
)
@pytest.mark.parametrize("after", [0, 13, 40])
def test_cost_to_the_horizon_is_foreseen(method, after):
    model = make()
    optimizer = wrap(model, method=method)
    train(model, optimizer, after)
    foreseen = optimizer.flops(model, X)
    train(model, optimizer, 40 - after, start=after)
    assert foreseen.train_expected == pytest.approx(optimizer.flops(model, X).train_so_far)


@pytest.mark.parametrize("after", [0, 13, 30])
def test_cost_of_a_planned_density_is_foreseen(after):
    """Where every layer follows the plan alone, the plan gives its live counts."""
    model = make()
    optimizer = wrap(model, method=Pruning(scope="layer"))
    train(model, optimizer, after)
    foreseen = optimizer.flops(model, X)
    train(model, optimizer, 40 - after, start=after)
    was = optimizer.flops(model, X).train_so_far
    assert foreseen.train_expected == pytest.approx(was, rel=0.002)
    assert was > 1.5 * 40 * 3 * foreseen.inference_dense * 0.2


def test_expected_cost_needs_a_horizon_and_a_plan():
    model = make()
    assert wrap(make(), total_steps=None, t_end=30).flops(make(), X).train_expected is None
    optimizer = wrap(model, method=Thinning())
    assert optimizer.flops(model, X).train_expected is None
    train(model, optimizer, 4)
    assert optimizer.flops(model, X).train_expected is None
    assert optimizer.flops(model, X).train_expected_ratio is None


@pytest.mark.parametrize(
    ("method", "last_update"), [("snfs", 28), ("rigl-sg", 28), ("rigl-sm", 28), ("mest", 30)]
)
def test_cost_of_changing_live_counts_is_known_after_the_last_update(method, last_update):
    model = make()
    optimizer = wrap(model, method=method)
    for step in range(last_update):
        assert optimizer.flops(model, X).train_expected is None
        train(model, optimizer, 1, start=step)
    foreseen = optimizer.flops(model, X)
    train(model, optimizer, 40 - last_update, start=last_update)
    report = optimizer.flops(model, X)
    assert foreseen.train_expected == pytest.approx(report.train_so_far)
    assert report.train_expected == report.train_so_far


def test_expected_cost_after_the_horizon_is_the_measured_cost():
    model = make()
    optimizer = wrap(model, method="static", total_steps=10)
    train(model, optimizer, 15)
    report = optimizer.flops(model, X)
    assert report.train_expected == report.train_so_far
    assert report.train_expected_ratio == pytest.approx(report.inference_ratio)


def test_dense_run_costs_what_dense_costs():
    model = make()
    optimizer = wrap(model, density=1.0)
    train(model, optimizer, 10)
    report = optimizer.flops()
    assert report.train_so_far == 10 * report.train_dense
    assert report.train_expected == 40 * report.train_dense
    assert report.train_expected_ratio == report.small_dense_ratio == 1.0


def test_costs_go_on_after_a_resume():
    model = make()
    optimizer = wrap(model, method="pruning")
    train(model, optimizer, 17)
    other_model = make()
    other = wrap(other_model, method="pruning")
    other_model.load_state_dict(model.state_dict())
    other.load_state_dict(optimizer.state_dict())
    assert other.flops(other_model, X) == optimizer.flops(model, X)
    train(model, optimizer, 10, start=17)
    train(other_model, other, 10, start=17)
    assert other.flops(other_model, X) == optimizer.flops(model, X)


def test_dictionary_of_numbers_goes_to_any_tracker():
    model = make()
    optimizer = wrap(model)
    train(model, optimizer, 10)
    report = optimizer.flops()
    numbers = report.as_dict(layers=False)
    assert all(type(value) in (int, float) and math.isfinite(value) for value in numbers.values())
    assert numbers["train_so_far"] == report.train_so_far
    assert numbers["train_expected_ratio"] == report.train_expected_ratio
    assert numbers["small_dense_ratio"] == optimizer.density
    everything = json.loads(json.dumps(report.as_dict()))
    assert everything.pop("layers") == [
        {"name": layer.name, "dense": layer.dense, "sparse": layer.sparse}
        for layer in report.layers
    ]
    assert everything == numbers


def test_unknown_figures_are_not_in_the_dictionary():
    model = make()
    report = wrap(model, total_steps=None, t_end=30).flops(model, X)
    assert not {"total_steps", "train_expected", "train_expected_ratio"} & report.as_dict().keys()


def test_report_prints_a_table_by_layer_and_one_line_that_compares():
    model = make()
    optimizer = wrap(model, method="static", init="uniform", density=0.25)
    report = optimizer.flops(model, X)
    head, _, *layers, _, total, line = str(report).splitlines()
    assert head.split() == ["layer", "dense", "sparse", "ratio", "share"]
    assert [row.split()[0] for row in layers] == list(POSITIONS)
    dense = 2 * 9 * 576
    live = live_counts(optimizer)["conv2.weight"]
    assert layers[1].split()[1:4] == [f"{dense:,}", f"{2 * 9 * live:,}", "0.2500"]
    assert total.split()[:3] == [
        "total",
        f"{report.inference_dense:,.0f}",
        f"{report.inference_sparse:,.0f}",
    ]
    assert sum(float(row.split()[4]) for row in layers) == pytest.approx(1, abs=2e-4)
    ratio = f"{report.inference_ratio:.3f}x"
    assert line == report.comparison()
    ours, small = line.split("; ")
    assert ours == (
        f"inference {ratio}, training {ratio}, {ratio} over all 40 steps, "
        "of the dense network's FLOPs"
    )
    assert small == (f"a small dense network of as many weights: about {optimizer.density:.3f}x")
    train(model, optimizer, 10)
    assert f"training {ratio} in 10 steps" in optimizer.flops().comparison()


def test_computed_weights_have_a_row_of_their_own():
    model = nn.Sequential(
        torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4, bias=False)), nn.Linear(4, 2)
    )
    report = wrap(model, method="static").flops(model, torch.zeros(1, 4))
    row = next(line for line in report.table().splitlines() if line.startswith("(computed"))
    assert row.split() == ["(computed", "weights)", "32", "32", "1.0000", f"{32 / 38:.4f}"]


def test_model_that_uses_no_weight_is_refused():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return x

    with pytest.raises(ValueError, match="no convolution and no linear map"):
        wrap(Idle(), density=1.0).flops(None, torch.zeros(1, 4))
