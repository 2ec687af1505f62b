"""The memory that a model takes in a process that serves it, and where its time goes."""

import time

import pytest
import torch
from torch import fx, nn

from benchmarks.speed.condensed import bytes_to_serve, profile, profiles
from sparseopt.speedup.inference.dense_implementations import dense_implementations


def test_memory_to_serve_a_model_is_mostly_its_weights():
    model = nn.Linear(4096, 4096)
    weights = 4 * 4096 * 4096
    assert weights <= bytes_to_serve(model, torch.randn(1, 4096)) < 2 * weights


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")
def test_memory_of_a_frozen_program_is_not_known():
    x = torch.randn(1, 2)
    implementations, _ = dense_implementations(nn.Linear(2, 2), (x,), {}, None, ["scripted"])
    assert bytes_to_serve(implementations["frozen TorchScript"], x) is None


class Slow(nn.Module):
    def forward(self, x):
        time.sleep(0.01)
        return x


class Tracer(fx.Tracer):
    def is_leaf_module(self, module, name):
        return isinstance(module, Slow) or super().is_leaf_module(module, name)


def test_profile_adds_up_the_calls_of_a_kind():
    model = nn.Sequential(nn.Linear(2, 2), Slow(), nn.Flatten(), Slow())
    found = profile(fx.GraphModule(model, Tracer().trace(model)), torch.randn(1, 2), 3)
    assert next(iter(found)) == "Slow"
    assert 20 <= found["Slow"] < 200
    assert set(found) == {"Linear", "Slow", "Flatten"}


def test_table_has_the_longest_kinds_and_the_sum_of_the_others():
    record = {
        "network": "gpt2",
        "batch": 1,
        "init": "uniform",
        "density": 0.1,
        "environment": {"threads": 2},
        "machine": {
            "machine": {"generation": "family 6, model 143", "isa": "native", "flags": ["amx_bf16"]}
        },
        "profile": {kind: 10.0 / 2**place for place, kind in enumerate("abcdefg")},
    }
    (row,) = profiles([record, {"network": "gpt2"}])
    assert row["milliseconds"] == "a 10, b 5, c 2.5, d 1.25, e 0.625, others 0.47"
    assert row["threads"] == "2"
    assert row["processor"] == "family 6, model 143, AMX"
