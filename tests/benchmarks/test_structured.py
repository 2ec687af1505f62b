"""The benchmark of whole neurons and heads: it trains, times, resumes and reports."""

import contextlib
import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks.structured import report, timing, training
from benchmarks.structured.accuracy import epochs_of
from benchmarks.structured.cli import build_parser, main
from benchmarks.structured.inference import trained_network
from benchmarks.structured.models import GPTBlocks, Shape, ViT, shape_of
from benchmarks.structured.protocol import METHODS
from benchmarks.structured.records import ResultsError
from benchmarks.structured.report import accuracy_rows, average, fastest_of, short_time_rows
from benchmarks.structured.training import Run

TINY = [
    *["--width", "64", "--depth", "1", "--images", "64", "--batch-size", "32"],
    *["--threads", "1", "--delta-t", "1"],
]


def accuracy(folder, *options):
    return main(["accuracy", *TINY, "--seeds", "0", "--out", str(folder), *options])


@pytest.fixture(autouse=True)
def _every_epoch_takes_a_second(monkeypatch):
    """Otherwise the machine decides how many epochs `rigl-same-time` trains."""
    seconds = itertools.count()
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))


@contextlib.contextmanager
def stopped_after_an_epoch(monkeypatch):
    """Stop the run in this block as soon as it has been saved."""

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        saved = Run._save
        patched.setattr(Run, "_save", lambda run, path: (saved(run, path), stop()))
        with pytest.raises(KeyboardInterrupt):
            yield


def test_every_method_is_trained_and_reported(tmp_path):
    assert accuracy(tmp_path, "--epochs", "3") == 0
    records = {
        name: json.loads((tmp_path / f"accuracy-{name}-0.json").read_text()) for name in METHODS
    }
    assert all(len(run["epochs"]) == 3 for run in records.values())
    assert records["rigl-struct"]["heads"] == [1]
    assert records["rigl-struct"]["neurons"] == [64]
    assert records["rigl-struct"]["compacted_parameters"] == records["thinner"]["parameters"]
    assert records["narrower"]["parameters"] < records["dense"]["parameters"] / 3
    for name in ("rigl-struct", "srigl"):
        run = records[name]
        assert run["compacted_accuracy"] == pytest.approx(run["accuracy"], abs=0.01)
    report = (tmp_path / "report.md").read_text()
    assert all(f"| `{name}` | 1 |" in report for name in METHODS)
    assert main(["inference", "--out", str(tmp_path), "--threads", "1", "--rounds", "1"]) == 0
    timed = json.loads((tmp_path / "inference-0.json").read_text())["milliseconds"]
    assert set(timed) == set(METHODS) - {"rigl-same-time"}
    share = f"| {timed['narrower'] / timed['dense']:.2f} |"
    rows = (tmp_path / "report.md").read_text().splitlines()
    assert share in next(row for row in rows if row.startswith("| `narrower` |"))


@pytest.mark.parametrize(
    ("method", "shape"),
    [
        ("rigl-struct", Shape(64, 32, (1,), (64,))),
        ("thinner", Shape(64, 32, (1,), (64,))),
        ("rigl", None),
        ("srigl", None),
    ],
)
def test_network_whose_inference_is_timed_has_the_widths_and_densities_of_the_run(
    tmp_path, method, shape
):
    accuracy(tmp_path, "--epochs", "3", "--methods", method)
    run = json.loads((tmp_path / f"accuracy-{method}-0.json").read_text())
    network = trained_network(run)
    made = shape_of(network)
    if shape is not None:
        assert made == shape
    else:  # a few neurons of `rigl` are reached by no live weight
        assert 0 < made.neurons[0] < (200 if method == "srigl" else 257)
        assert [list(made.heads), list(made.neurons)] == [run["heads"], run["neurons"]]
    single = method in {"srigl", "rigl"}
    for name in ("fc1", "fc2"):
        weight = getattr(network.blocks[0], name).weight
        share = run["live_compacted"][f"blocks.0.{name}.weight"] if single else 1.0
        assert int(weight.count_nonzero()) == pytest.approx(share * weight.numel(), rel=0.1)
    if method == "rigl":
        assert run["live_compacted"] == pytest.approx(run["live"], abs=0.01)


def test_rigl_trains_as_many_epochs_as_take_the_time_of_structured_rigl(tmp_path):
    options = build_parser().parse_args(["accuracy", "--epochs", "12", "--out", str(tmp_path)])
    with pytest.raises(ResultsError, match="train rigl-struct and rigl first"):
        epochs_of("rigl-same-time", options)

    def write(name, seconds, compacted=True, processor="one"):
        run = {
            "method": name,
            "epochs": [{"seconds": seconds}, {"seconds": 100.0}, {"seconds": seconds}],
            "environment": {"processor": processor, "device": "cpu", "threads": 1},
            "options": {"compacted": compacted},
        }
        (tmp_path / f"accuracy-{name}-0.json").write_text(json.dumps(run))

    write("rigl-struct", 3.0)
    write("rigl", 4.0)
    assert epochs_of("rigl-same-time", options) == 9
    assert epochs_of("rigl", options) == 12
    write("rigl", 4.0, processor="another")
    with pytest.raises(ResultsError, match="same hardware"):
        epochs_of("rigl-same-time", options)
    write("rigl", 4.0)
    write("rigl-struct", 3.0, compacted=False)
    with pytest.raises(ResultsError, match="--compacted"):
        epochs_of("rigl-same-time", options)


def run_of(method, seed, **more):
    return {
        "method": method,
        "seed": seed,
        "accuracy": 0.5,
        "parameters": 1,
        "epochs": [{"seconds": 1.0}],
        "environment": {"processor": "one", "device": "cpu", "threads": 1},
        **more,
    }


def test_times_of_the_fastest_epochs_are_compared_on_the_same_processor():
    def run(method, seconds, epochs, seed=0, processor="one"):
        where = {"processor": processor, "device": "cpu", "threads": 1}
        return run_of(method, seed, epochs=[{"seconds": seconds}] * epochs, environment=where)

    runs = [
        run("dense", 4.0, 2),
        run("narrower", 1.0, 4),
        run("thinner", 1.0, 2, processor="another"),
        run("rigl-struct", 1.0, 2, seed=1),
        run("rigl-struct", 3.0, 2),
        run("rigl-same-time", 2.0, 1),
    ]
    timed = [{"milliseconds": {"dense": 8.0, "narrower": 2.0, "rigl": 4.0}}]
    found = accuracy_rows(runs, timed)
    assert [row["training time / dense"] for row in found] == ["1.00", "0.50", "-", "0.25", "0.25"]
    assert [row["inference time / dense"] for row in found] == ["1.00", "0.25", "-", "-", "0.50"]


def test_inference_time_of_fewer_seeds_than_runs_says_how_many_seeds_they_are():
    methods = ("dense", "rigl", "rigl-same-time")
    runs = [run_of(method, seed) for method in methods for seed in (0, 1)]
    timed = [{"milliseconds": {"dense": 8.0, "rigl": 4.0}}, {"milliseconds": {"dense": 8.0}}]
    cells = [row["inference time / dense"] for row in accuracy_rows(runs, timed)]
    assert cells == ["1.00", "0.50 (1 seed)", "0.50 (1 seed)"]


def test_run_whose_weights_are_all_live_has_no_share_of_weights_ever_live():
    (row,) = accuracy_rows([run_of("rigl", 0, live={}, ever={})], [])
    assert row["weights ever live"] == "-"


def test_committed_report_is_made_from_the_committed_results():
    folder = Path(report.__file__).parent / "results"
    lines = report.report_lines(folder)
    assert (folder / "report.md").read_text() == "\n".join(lines).rstrip() + "\n"


def test_run_that_was_stopped_is_the_uninterrupted_one(tmp_path, monkeypatch):
    chosen = ("--methods", "rigl-struct", "--epochs", "3")
    accuracy(tmp_path / "whole", *chosen)

    with stopped_after_an_epoch(monkeypatch):
        accuracy(tmp_path / "stopped", *chosen)
    accuracy(tmp_path / "stopped", *chosen)
    losses = [
        [
            epoch["loss"]
            for epoch in json.loads((tmp_path / one / "accuracy-rigl-struct-0.json").read_text())[
                "epochs"
            ]
        ]
        for one in ("whole", "stopped")
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("precisions", [("float32",), ("float32", "bfloat16")])
def test_times_are_of_every_contender_in_every_precision(tmp_path, monkeypatch, precisions):
    monkeypatch.setattr(timing, "precisions_of", lambda _: precisions)
    options = ["time", "--models", "vit-192", "--densities", "0.25", "--depth", "1"]
    sizes = ["--batch-size", "4", "--rounds", "1", "--threads", "1", "--out", str(tmp_path)]
    assert main([*options, *sizes]) == 0
    record = json.loads((tmp_path / "time-vit-192-0.25-cpu.json").read_text())
    assert record["neurons"] == [192]
    assert record["heads"] == [2]
    assert len(record["inference"]) == 3 * len(precisions)
    assert len(record["training"]) == 4 * len(precisions)
    assert "| vit-192 | 0.25 |" in (tmp_path / "report.md").read_text()


def test_update_has_its_share_of_the_average():
    times = {"compacted, float32": 1.0, "compacted pair, float32": 11.0, "dense, float32": 3.0}
    assert average(times) == {"compacted, float32": pytest.approx(1.09), "dense, float32": 3.0}
    assert fastest_of({"dense, float32": 3.0, "dense, bfloat16": 2.0}) == {"dense": 2.0}


def test_short_rows_have_the_range_of_each_ratio_over_the_models():
    def record(density, dense, compacted, by_hand):
        times = {"dense, float32": dense, "compacted, float32": compacted}
        slower = {"dense, bfloat16": 2 * dense, "by hand, float32": by_hand}
        return {"density": density, "training": times | slower, "inference": times | slower}

    records = [record(0.1, 8.0, 2.0, 1.0), record(0.5, 8.0, 4.0, 4.0), record(0.1, 8.0, 4.0, 4.0)]
    half, tenth = short_time_rows(records)
    assert (half["density"], tenth["density"]) == ("0.5", "0.1")
    assert half["training, compacted / dense"] == "0.50"
    assert tenth["training, compacted / dense"] == "0.25 to 0.50"
    assert tenth["inference, compacted / by hand"] == "1.00 to 2.00"


@pytest.mark.parametrize("kind", [ViT, GPTBlocks])
def test_model_has_the_widths_that_it_was_built_with(kind):
    shape = Shape(64, 32, (2, 1), (7, 9))
    assert shape_of(kind(shape)) == shape
    assert Shape.uniform(2, 64, 32).thinner(0.25) == Shape(64, 32, (1, 1), (64, 64))


def test_tokens_do_not_see_later_ones():
    model = GPTBlocks(Shape.uniform(1, 64, 32))
    x = torch.randn(1, 4, 64)
    later = x.clone()
    later[:, 3] += 1
    torch.testing.assert_close(model(x)[:, :3], model(later)[:, :3])


def test_options_have_help():
    assert "report" in build_parser().format_help()
