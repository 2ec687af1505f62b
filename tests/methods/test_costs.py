"""The training formula of each method, compared with published figures and sums by hand."""

import pytest
import torch

from sparseopt import (
    MEST,
    Accumulated,
    Compose,
    RigL,
    Smoothed,
    SparseOptimizer,
    TrainingCost,
    UpdateSchedule,
)
from sparseopt.methods import get_method
from tests.support.published import WideResNet222

# Rows of the report's tables: (test, train) FLOPs as multiples of the dense network's.
SNFS_ROWS = [
    (0.27, 0.51),
    (0.49, 0.66),
    (0.28, 0.52),
    (0.37, 0.58),
    (0.55, 0.70),
    (0.38, 0.59),
    (0.54, 0.69),
]


def ratio(method, *, sparse, mean=None, delta_t=100):
    mean = sparse if mean is None else mean
    return get_method(method).train_flops(TrainingCost(1.0, sparse, mean, delta_t)) / 3


@pytest.mark.parametrize(("test", "train"), SNFS_ROWS)
def test_snfs_costs_what_the_report_prints(test, train):
    """Up to the rounding of both printed figures."""
    assert ratio("snfs", sparse=test) == pytest.approx(train, abs=0.0101)


@pytest.mark.parametrize(("density", "expected"), [(0.2, 0.205), (0.352, 0.3543)])
def test_rigl_costs_what_the_report_prints(density, expected):
    sparse = 0.2022 if density == 0.2 else density
    assert ratio("rigl", sparse=sparse) == pytest.approx(expected, abs=6e-4)


@pytest.mark.parametrize("method", ["snfs", "pruning", "granet", "rigl-sg", "rigl-sm", "mest"])
def test_average_density_counts_where_density_moves(method):
    low, high = ratio(method, sparse=0.1, mean=0.1), ratio(method, sparse=0.1, mean=0.4)
    assert high > low
    assert ratio(method, sparse=0.4, mean=0.1) == low


def by_hand(sparse, dense_steps, delta_t):
    """A period of one update step and delta_t others, some of them with a dense gradient."""
    steps = [2 * sparse + 1] * dense_steps + [3 * sparse] * (delta_t + 1 - dense_steps)
    return sum(steps) / len(steps) / 3


@pytest.mark.parametrize(
    ("method", "dense_steps"),
    [
        ("static", 0),
        ("set", 0),
        ("mest", 0),
        (MEST(grow="gradient"), 1),
        ("rigl", 1),
        ("rigl-sg", 1),
        ("rigl-sm", 1),
        ("granet", 1),
        ("n:m", 1),
        ("srigl", 1),
        (RigL(gradient=Accumulated(4)), 4),
        (RigL(gradient=Accumulated(1000)), 21),
        (RigL(gradient=Smoothed(0.9)), 21),
        ("snfs", 21),
        (Compose(), 1),
        (Compose(grow="random"), 0),
        (Compose(grow="momentum", gradient=Smoothed(0.9)), 21),
        (Compose(grow="gradient", gradient=Smoothed(0.9, dense=False)), 1),
    ],
)
def test_formulas_are_sums_over_a_period(method, dense_steps):
    assert ratio(method, sparse=0.3, delta_t=20) == pytest.approx(by_hand(0.3, dense_steps, 20))


def test_schedule_of_its_own_gives_the_period():
    method = Compose(schedule=UpdateSchedule(delta_t=20))
    assert ratio(method, sparse=0.3, delta_t=100) == pytest.approx(by_hand(0.3, 1, 20))


@pytest.mark.parametrize(
    ("method", "settings", "printed"),
    [
        ("static", {}, 0.174),
        ("set", {}, 0.174),
        ("mest", {}, 0.174),
        ("rigl", {}, 0.176),
        ("rigl-sg", {}, 0.176),
        ("rigl-sm", {}, 0.176),
        (RigL(gradient=Accumulated(10)), {}, 0.201),
        (RigL(gradient=Smoothed(0.9)), {}, 0.449),
        ("snfs", {}, 0.449),
        ("granet", {}, 0.729),
        ("pruning", {}, 1.0),
        ("n:m", {"density": 0.5, "init": "uniform"}, 0.503),
        ("srigl", {}, 0.177),
    ],
)
def test_table_of_the_documentation(method, settings, printed):
    """WRN-22-2 on CIFAR-10 at density .1, ERK, before the first step."""
    model = WideResNet222()
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model,
        method=method,
        **{"density": 0.1, "total_steps": 88_000, **settings},
    )
    report = optimizer.flops(model, torch.zeros(1, 3, 32, 32))
    assert report.train_ratio == pytest.approx(printed, abs=6e-4)
