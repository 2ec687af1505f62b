"""The benchmark of speed: what it compares, and what its report says."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.cifar.config import load_preset
from benchmarks.cifar.grid import RunSpec
from benchmarks.cifar.models import WideResNet
from benchmarks.common.formats import FORMATS
from benchmarks.speed import condensed, models
from benchmarks.speed.cli import main, report_lines, write_report
from benchmarks.speed.inference import build_models, measure_models
from benchmarks.speed.kernels.machine import file_suffix
from benchmarks.speed.kernels.report import processor_of
from benchmarks.speed.linear import measure_layer
from benchmarks.speed.movement import METHODS, watch
from benchmarks.speed.training import DELTA_T, average_steps, measure_training
from sparseopt.speedup import kernels

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "speed" / "results"
ENVIRONMENT = {"processor": "P", "threads": 2, "device": "cpu", "torch": "T", "git_commit": "C"}


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(models.WORKLOADS, "tiny", lambda: WideResNet(10, 1))
    return "tiny"


@pytest.fixture
def built(tiny):
    """A dense, a compacted and a handmade model, and the share of FLOPs."""
    return build_models(tiny, 0.1)


def shapes(model):
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def test_model_by_hand_has_the_shapes_of_the_compacted_one_and_nothing_else_of_it(built):
    _, compacted, by_hand = built[0].values()
    assert shapes(by_hand) == shapes(compacted)
    assert not torch.equal(by_hand.stem.weight, compacted.stem.weight)
    assert type(compacted.norm) is nn.BatchNorm2d


def test_share_of_every_width_that_stays_is_the_square_root_of_the_density(built):
    (dense, compacted, _), flops_ratio = built[0].values(), built[1]
    assert compacted.stem.weight.shape == (5, 3, 3, 3)
    assert compacted.head.in_features == 20
    left, all_weights = (sum(p.numel() for p in model.parameters()) for model in (compacted, dense))
    assert left / all_weights == pytest.approx(0.1, abs=0.02)
    assert flops_ratio == pytest.approx(0.1, abs=0.02)


def test_command_measures_writes_and_reports(monkeypatch, tmp_path):
    monkeypatch.setattr("benchmarks.speed.linear.SHAPES", ((64, 16),))
    options = ["linear", "--threads", "1", "--batches", "3", "--rounds", "1"]
    assert main([*options, "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*.json")
    record = json.loads(path.read_text())
    assert path.name == f"linear{file_suffix(record['machine'])}.json"
    assert record["figure"] == "linear"
    assert record["environment"]["threads"] == 1
    assert {one["density"] for one in record["linear"]} == {0.2, 0.1, 0.05, 0.01}
    written = (tmp_path / "report.md").read_text()
    assert f"| 64 x 16 | 0.01 | 3 | {processor_of(record['machine'])} | 1 |" in written
    (tmp_path / "report.md").unlink()
    assert main(["report", "--threads", "1", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "report.md").read_text() == written


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("report --threads 0", "argument --threads: must be a whole number of at least 1, got '0'"),
        ("condensed --density 7", "argument --density: must be above 0 and at most 1, got '7'"),
        ("condensed --batch 0", "argument --batch: must be"),
        ("condensed --rounds 0", "argument --rounds: must be"),
        ("inference --density 5", "argument --density: must be"),
        ("training --density x", "argument --density: must be"),
        ("training --batches 0", "argument --batches: must be"),
        ("linear --rounds 0", "argument --rounds: must be"),
        ("linear --batches 1 0", "argument --batches: must be"),
        ("movement --density 0", "argument --density: must be"),
        ("movement --data-dir nowhere", "argument --data-dir: 'nowhere' is not a folder"),
        ("movement --data-dir .", "--data-dir .: no folder 'train'"),
        ("kernels --densities 0.1 2", "argument --densities: must be"),
        ("kernels --rounds none", "argument --rounds: must be"),
        ("steps --rounds -1", "argument --rounds: must be"),
        ("steps --inits unifrom", "argument --inits: invalid choice: 'unifrom'"),
        ("steps --densities 0.3", "argument --densities: invalid choice: 0.3"),
        ("steps --workloads gpt --inits erk", "no such case; there are gpt, linear, 0.1"),
    ],
)
def test_wrong_arguments_are_refused_with_what_would_be_right(
    command, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main([*command.split(), "--out", "results"])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("figure", ["inference", "training", "linear"])
def test_results_with_other_threads_stay_apart(figure, monkeypatch, tmp_path):
    monkeypatch.setattr("benchmarks.speed.linear.SHAPES", ((64, 16),))
    monkeypatch.setattr("benchmarks.speed.inference.build_models", lambda *_: ({}, 1.0))
    monkeypatch.setattr("benchmarks.speed.inference.measure_models", lambda *_: {})
    monkeypatch.setattr("benchmarks.speed.training.measure_training", lambda *_: {})
    monkeypatch.setattr("benchmarks.speed.cli.write_report", lambda _: None)
    options = [figure, "--batches", "1", "--rounds", "1", "--out", str(tmp_path)]
    for threads in ("2", "1"):
        main([*options, "--threads", threads])
    found = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert sorted(one["environment"]["threads"] for one in found.values()) == [1, 2]
    for name, record in found.items():
        assert name.endswith(f"{file_suffix(record['machine'])}.json")


def test_committed_report_is_that_of_the_committed_results(tmp_path):
    for file in COMMITTED.glob("*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    write_report(tmp_path)
    assert (tmp_path / "report.md").read_text() == (COMMITTED / "report.md").read_text()


def test_report_has_a_row_for_every_measurement(built, tmp_path):
    models, flops_ratio = built
    record = {
        "figure": "inference",
        "workload": "tiny",
        "density": 0.1,
        "flops_ratio": flops_ratio,
        "environment": ENVIRONMENT,
        "inference": [measure_models(models, 2, 1)],
    }
    times = record["inference"][0]["milliseconds"]
    assert len(times) == 3 * len(FORMATS)
    for precision in FORMATS:
        times.update(
            {
                f"dense, {precision}": 8.0,
                f"compacted, {precision}": 3.0,
                f"by hand, {precision}": 4.0,
            }
        )
    times["dense, bfloat16 channels-last"] = 6.0
    text = "\n".join(report_lines([record], tmp_path))
    fastest = "6 ms, bfloat16 channels-last | 3 ms, bfloat16 channels-last"
    assert f"| tiny | 0.1 | 2 | P | 2 | {fastest} | 4 ms, bfloat16 channels-last |" in text
    assert f"| 0.750 | 0.500 | 0.667 | {flops_ratio:.3f} |" in text
    assert "On P, 2 threads, on cpu, torch T, commit `C`." in text


def test_report_names_the_fastest_implementation_of_a_linear_layer(tmp_path):
    one = measure_layer((32, 16), 0.25, 3, 1)
    assert set(one["sparse"]) == {"CSR", "condensed"}
    one.update(dense={"A": 4e-6, "B": 2e-6}, sparse={"CSR": 1e-6}, chosen="CSR")
    record = {"figure": "linear", "environment": ENVIRONMENT, "linear": [one]}
    text = "\n".join(report_lines([record], tmp_path))
    assert "| 32 x 16 | 0.25 | 3 | P | 2 | 2, B | 1, CSR | 2.00 | CSR |" in text


def test_training_step_is_an_average_over_a_period_with_one_update(tiny, tmp_path):
    measured = measure_training(tiny, 0.1, 4, 1)
    times = measured["milliseconds"]
    assert len(times) == 6 * len(FORMATS)
    for precision in FORMATS:
        times.update(
            {
                f"dense, {precision}": 8.0,
                f"masked, {precision}": 10.0,
                f"masked pair, {precision}": 30.0,
            }
        )
        times.update({f"compacted, {precision}": 2.0, f"compacted pair, {precision}": 32.0})
        times[f"by hand, {precision}"] = 1.5
    average = average_steps(times)
    assert average["dense, float32"] == 8.0
    assert DELTA_T * average["compacted, float32"] == pytest.approx(99 * 2.0 + 30.0)
    record = {"figure": "training", "environment": ENVIRONMENT, "training": [measured]}
    text = "\n".join(report_lines([{**record, "workload": tiny, "density": 0.1}], tmp_path))
    fastest = {"dense": "8", "by hand": "1.5", "masked": "10.1", "compacted": "2.28"}
    cells = (f"{time} ms, bfloat16 channels-last" for time in fastest.values())
    assert f"| 4 | P | 2 | {' | '.join(cells)} |" in text
    assert "| 0.226 | 1.262 | 0.285 | 0.188 |" in text
    assert "| 4 | P | 2 | float32 | 8.0 | 10.0 | 2.0 | 1.5 | 20.0 | 10.1 | 30.0 | 2.3 |" in text


def test_channels_move_in_every_layer(splits, tmp_path):
    changes = ("training.batch_size=16", "training.epochs=1", "sparsity.delta_t=2")
    protocol, records = load_preset("smoke", changes), {}
    for method in METHODS:
        records[method] = watch(protocol, RunSpec(method, "uniform", 0.1, 0), splits)
        content = {"figure": "movement", "environment": ENVIRONMENT, **records[method]}
        (tmp_path / f"{method}.json").write_text(json.dumps(content))
    for method, record in records.items():
        first, last = record["updates"][0], record["updates"][-1]
        for name, channels in record["channels"].items():
            assert first["ever"][name] <= last["ever"][name] <= channels
        share = "weights" if method == "srigl" else "ever"
        moved = {name for name in record["channels"] if last[share][name] > first[share][name]}
        assert moved == record["channels"].keys()
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "| rigl-struct | WRN-10-1 | digits | 0.1 | 31." in text


@pytest.mark.skipif(not kernels.available(), reason=str(kernels.why_not()))
def test_network_in_inference_is_measured_and_reported(monkeypatch, tmp_path):
    tiny = condensed.Network("Tiny", lambda: WideResNet(10, 1), lambda n: torch.randn(n, 3, 32, 32))
    monkeypatch.setitem(condensed.NETWORKS, "wrn-22-2", tiny)
    monkeypatch.setattr(condensed, "LEAST_CALLS", 4)
    monkeypatch.setattr(condensed, "CALLS", 4)
    options = ["condensed", "--threads", "1", "--batch", "1", "--rounds", "1"]
    options += ["--no-compile", "--no-onnx", "--out", str(tmp_path)]
    assert main(options) == 0
    (path,) = tmp_path.glob("condensed-wrn-22-2-1-uniform-0.1*.json")
    record = json.loads(path.read_text())
    assert {"as it is, float32", record["chosen"]} <= set(record["milliseconds"])
    assert record["files"]["bfloat16"] < record["files"]["float32"] < record["files"]["dense"]
    assert set(record["server"]["calls"]) == {"1", "2"}
    report = (tmp_path / "report.md").read_text()
    assert "## Inference on live weights" in report
    assert f"| Tiny | 1 | 0.1, uniform | {processor_of(record['machine'])} | 1 |" in report
