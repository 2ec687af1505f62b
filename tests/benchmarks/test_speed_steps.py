"""The benchmark of whole training steps: what it compares, and what its report says."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.cifar.models import WideResNet
from benchmarks.speed.cli import main, report_lines
from benchmarks.speed.kernels.machine import file_suffix
from benchmarks.speed.steps import figure
from benchmarks.speed.steps.figure import CASES, Case, measure_case
from benchmarks.speed.steps.report import peers_table, steps_table
from benchmarks.speed.steps.workloads import WORKLOADS, Block, Gpt
from sparseopt.speedup import kernels

needs_kernels = pytest.mark.skipif(not kernels.available(), reason="no kernels here")


@pytest.fixture
def small(monkeypatch):
    """A small network under the name of a measured network."""
    workload = replace(WORKLOADS["wrn-22-2"], batch=4, model=lambda: WideResNet(10, 1))
    monkeypatch.setitem(WORKLOADS, "wrn-22-2", workload)
    return Case("wrn-22-2", "uniform", 0.1)


@needs_kernels
@pytest.mark.parametrize("precisions", [("float32", "bfloat16"), ("float32",)])
def test_dense_and_sparse_steps_are_timed_in_the_precisions_of_the_processor(
    small, monkeypatch, precisions
):
    monkeypatch.setattr(figure, "precisions_of", lambda _: precisions)
    record = measure_case(small, 2)
    names = {f"{who}, {p}" for who in ("dense", "speed_up") for p in precisions}
    assert record["milliseconds"].keys() == names
    assert record["speedup"].keys() == {f"speed_up, {p}" for p in precisions}
    assert all(ratios.keys() == set(precisions) for ratios in record["speedup"].values())
    for low, median, high in [(q1, m, q3) for m, q1, q3 in record["milliseconds"].values()]:
        assert 0 < low <= median <= high
    assert "measured" in record["report"][f"speed_up, {precisions[-1]}"][0]
    assert isinstance(record["plan"][f"speed_up, {precisions[-1]}"], dict)


@needs_kernels
def test_a_command_measures_what_is_chosen_and_reports(small, tmp_path):
    options = ["steps", "--workloads", "wrn-22-2", "--inits", "erk", "--densities", "0.2"]
    assert main([*options, "--rounds", "2", "--threads", "1", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*.json")
    record = json.loads(file.read_text())
    assert file.name == f"steps-wrn-22-2-erk-0.2{file_suffix(record)}.json"
    assert record["machine"]["processor"]
    assert record["versions"]["torch"] == torch.__version__
    assert "| WRN-22-2, 4 | erk 0.2 |" in (tmp_path / "report.md").read_text()


def test_the_report_has_the_ratios_and_other_libraries():
    record = {
        "figure": "steps",
        "workload": "gpt",
        "title": "G",
        "init": "linear",
        "density": 0.1,
        "batch": 8,
        "rounds": 5,
        "load": 1.0,
        "threads": 1,
        "kernels": "k",
        "plan": {},
        "machine": {"processor": "P", "cores": 2, "flags": ["avx2", "avx512f"], "isa": "native"},
        "versions": {"torch": "T", "sparselab": "0.2", "sparseprop": "0.1"},
        "milliseconds": {
            "dense, float32": [400.0, 390.0, 410.0],
            "dense, bfloat16": [200.0, 190.0, 210.0],
            "speed_up, bfloat16": [100.0, 90.0, 110.0],
            "SparseLab": [800.0, 790.0, 810.0],
        },
        "speedup": {
            "speed_up, bfloat16": {"float32": [4.0, 3.9, 4.1], "bfloat16": [2.0, 1.9, 2.1]},
            "SparseLab": {"float32": [0.5, 0.4, 0.6], "bfloat16": [0.25, 0.2, 0.3]},
        },
        "missing": {"SparseProp": "RuntimeError: no"},
        "report": {"speed_up, bfloat16": ["as measured"]},
    }
    row = "| G, 8 | linear 0.1 | P | 1 | 400 | 200 | bf16 | 100 | 4.00 (3.90 to 4.10) |"
    assert f"{row} 2.00 (1.90 to 2.10) |" in steps_table([record])
    peers = "\n".join(peers_table([record]))
    assert "| SparseLab 0.2 | 0.50 (0.40 to 0.60) | - | 4.00 (3.90 to 4.10) |" in peers
    assert "| SparseProp 0.1 | RuntimeError: no |" in peers
    text = "\n".join(report_lines([record], None))
    assert "as measured" in text
    assert "Made on P, 2 cores (avx2, avx512f)" in text


def test_every_case_has_a_workload_and_a_file_of_its_own():
    assert len({case.file for case in CASES}) == len(CASES)
    assert {case.workload for case in CASES} == WORKLOADS.keys()
    assert all((case.init == "linear") == WORKLOADS[case.workload].linear_only for case in CASES)


def test_no_character_sees_a_later_one():
    torch.manual_seed(0)
    model = Gpt(width=64, blocks=2, length=8)
    text = torch.randint(0, 256, (1, 8))
    other = text.clone()
    other[0, 5] = (other[0, 5] + 1) % 256
    difference = (model(text) - model(other)).abs().amax(1)
    assert difference[:5].max() == 0
    assert difference[5:].min() > 0


def test_attention_is_that_of_torch():
    torch.manual_seed(0)
    block = Block(32, 4, causal=False)
    theirs = torch.nn.TransformerEncoderLayer(
        32, 4, 128, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    pairs = {
        "self_attn.in_proj_weight": block.qkv.weight,
        "self_attn.in_proj_bias": block.qkv.bias,
        "self_attn.out_proj.weight": block.out.weight,
        "self_attn.out_proj.bias": block.out.bias,
        "linear1.weight": block.up.weight,
        "linear1.bias": block.up.bias,
        "linear2.weight": block.down.weight,
        "linear2.bias": block.down.bias,
    }
    theirs.load_state_dict({**theirs.state_dict(), **pairs})
    x = torch.randn(2, 5, 32)
    torch.testing.assert_close(block(x), theirs.train()(x), rtol=1e-4, atol=1e-5)


def test_a_library_that_fails_is_named_with_its_reason(small, monkeypatch):
    def broken(self, name):
        raise RuntimeError("no such thing\nreally")

    monkeypatch.setattr(figure._Trainer, "peer", broken)
    if not kernels.available():
        pytest.skip("no kernels here")
    record = measure_case(small, 1, with_peers=True)
    assert record["missing"]["SparseProp"] == "RuntimeError: no such thing"
