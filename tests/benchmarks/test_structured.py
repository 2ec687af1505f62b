"""The benchmark of removed channels: what it compares, and what its report says."""

import pytest
import torch
from torch import nn

from benchmarks.cifar.models import WideResNet
from benchmarks.structured import models
from benchmarks.structured.linear import measure_linear
from benchmarks.structured.measuring import (
    WAYS,
    Case,
    interleaved,
    measure_inference,
    measure_layers,
    measure_training,
)
from benchmarks.structured.report import report_lines


@pytest.fixture
def case(monkeypatch):
    monkeypatch.setitem(models.WORKLOADS, "tiny", lambda: WideResNet(10, 1))
    return Case.make("tiny", 0.1)


def shapes(model):
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def test_the_model_by_hand_has_the_shapes_of_the_compacted_one_and_nothing_else_of_it(case):
    assert shapes(case.by_hand) == shapes(case.compacted)
    assert not torch.equal(case.by_hand.stem.weight, case.compacted.stem.weight)
    assert type(case.compacted.norm) is nn.BatchNorm2d


def test_the_square_root_of_the_density_stays_of_every_width(case):
    assert case.compacted.stem.weight.shape == (5, 3, 3, 3)
    assert case.compacted.head.in_features == 20
    weights = sum(parameter.numel() for parameter in case.compacted.parameters())
    dense = sum(parameter.numel() for parameter in case.dense.parameters())
    assert weights / dense == pytest.approx(0.1, abs=0.02)
    assert case.flops_ratio == pytest.approx(0.1, abs=0.02)


def test_every_call_is_timed_in_every_round():
    called = []
    calls = {name: (lambda name=name: called.append(name)) for name in "abc"}
    times = interleaved(calls, 4)
    assert sorted(called) == sorted("abc" * 5)
    assert list(times) == ["a", "b", "c"]


def test_the_report_has_a_row_for_every_measurement(case):
    environment = {"processor": "P", "threads": 2, "torch": "T", "git_commit": "C"}
    record = {
        "workload": "tiny",
        "density": 0.1,
        "flops_ratio": case.flops_ratio,
        "environment": environment,
        "inference": [measure_inference(case, 2, 1)],
        "training": [measure_training(case, 2, 1)],
        "layer_batch": 2,
        "layers": measure_layers(case, 2, 1),
    }
    times = record["inference"][0]["milliseconds"]
    assert len(times) == 3 * len(WAYS)
    for way in WAYS:
        times.update({f"dense, {way}": 8.0, f"compacted, {way}": 3.0, f"by hand, {way}": 4.0})
    times["dense, bfloat16 channels-last"] = 6.0
    text = "\n".join(report_lines([record]))
    assert "| 2 | 6.00 ms, bfloat16 channels-last | 3.00 ms, bfloat16 channels-last |" in text
    assert f"| 0.75 | {case.flops_ratio:.3f} | 0.500 | 0.667 |" in text
    assert "| `groups.2.0.conv2` | 64x64x3x3 | 20x20x3x3 | 0.098 |" in text


def test_the_report_names_the_fastest_way_of_a_linear_layer(monkeypatch):
    monkeypatch.setattr("benchmarks.structured.linear.SHAPES", ((32, 16),))
    monkeypatch.setattr("benchmarks.structured.linear.DENSITIES", (0.25,))
    (one,) = measure_linear(3, 1)
    assert set(one["sparse"]) == {"CSR", "condensed"}
    one.update(dense={"A": 4e-6, "B": 2e-6}, sparse={"CSR": 1e-6}, chosen="CSR")
    environment = {"processor": "P", "threads": 2, "torch": "T", "git_commit": "C"}
    text = "\n".join(report_lines([{"environment": environment, "linear": [one]}]))
    assert "| 32x16 | 0.25 | 3 | 2, B | 1, CSR | 2.00 | CSR |" in text
