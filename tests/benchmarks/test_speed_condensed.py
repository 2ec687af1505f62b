"""What a model in a server takes: its memory, and where its time goes; and what must be there."""

import sys
import time

import pytest
import torch
from torch import fx, nn

from benchmarks.cifar.settings import tomllib
from benchmarks.common.environment import REPOSITORY
from benchmarks.speed import condensed
from benchmarks.speed.cli import main
from benchmarks.speed.condensed import bytes_to_serve, profile, profiles
from sparseopt.speedup import kernels
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


@pytest.mark.skipif(not kernels.available(), reason=str(kernels.why_not()))
@pytest.mark.parametrize("package", condensed.ONNX_PACKAGES)
def test_missing_package_is_named_before_anything_is_measured(monkeypatch, tmp_path, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(condensed, "condense", lambda *_, **__: pytest.fail("it measures"))
    with pytest.raises(SystemExit) as refused:
        main(["condensed", "--threads", "1", "--out", str(tmp_path)])
    message = str(refused.value)
    assert f"but {package} cannot be imported" in message
    assert 'pip install -e ".[bench]"' in message
    assert "--no-onnx" in message


def test_extra_of_the_benchmarks_has_all_that_onnx_runtime_needs():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    bench = {one.partition(">=")[0] for one in project["optional-dependencies"]["bench"]}
    assert {*condensed.ONNX_PACKAGES, "psutil"} <= bench


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


@pytest.mark.parametrize("has_head", [True, False])
def test_all_linear_layers_of_a_transformer_but_its_head_are_sparse(has_head):
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    network = condensed.Network("t", lambda: model, torch.randn, True, has_head=has_head)
    masks = condensed.masks_of(network, model, "uniform", 0.25)
    live = {name: float(mask.float().mean()) for name, mask in masks.items()}
    assert live["0.weight"] == 0.25
    assert live.get("2.weight", 1.0) == (1.0 if has_head else 0.25)
