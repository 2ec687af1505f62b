"""The benchmark of kernels: which layers it has, what it resumes, and what its report says."""

import json
from collections import Counter

import pytest
import torch
from torchvision.models import ResNet50_Weights

from benchmarks.cifar.models import WideResNet
from benchmarks.speed.cli import main
from benchmarks.speed.kernels import figure, report, runs, summary
from benchmarks.speed.kernels.implementations import (
    INFERENCE,
    OURS,
    PARTS,
    TRAINING,
    Contender,
    passes,
)
from benchmarks.speed.kernels.layers import WORKLOADS, Layer, Workload
from benchmarks.speed.kernels.machine import AMX, INTEL, file_suffix
from benchmarks.speed.kernels.measuring import measure_layer, time_contenders
from benchmarks.speed.kernels.ratios import BF16, FP32, MIXED, break_even, losers, speedups
from sparseopt.speedup import kernels

needs_kernels = pytest.mark.skipif(not kernels.available(), reason=str(kernels.why_not()))
MACHINE = {"processor": "P", "cores": 2, "flags": ["f"], "isa": "native"}
ABOUT = {
    "figure": "kernels",
    "kernels": "H",
    "variant": "avx2",
    "clock": "thread",
    "threads": 1,
    "machine": MACHINE,
    "versions": {"torch": "T"},
}


def row(what, precision, implementation, milliseconds, density=None, speedup=None):
    made = {
        "what": what,
        "precision": precision,
        "implementation": implementation,
        "milliseconds": [milliseconds] * 3,
    }
    if density is not None:
        made["density"] = density
        made["speedup"] = [speedup or 1.0] * 3
    return made


def measured(layer, count, times):
    return {
        **layer.as_record(),
        "count": count,
        "rounds": 3,
        "load": [1.0, 2.0],
        "missing": {},
        "times": times,
    }


@pytest.fixture
def record():
    """A small layer that loses, and a large one that wins and occurs three times."""
    small, large = Layer(16, 32, 128, size=32), Layer(64, 64, 128, size=16, kernel=3)
    layers = []
    for layer, count, dense, ours in ((small, 1, 4.0, 5.0), (large, 3, 32.0, 8.0)):
        times = [
            row(TRAINING, "float32", "contiguous", dense * 2),
            row(TRAINING, "float32", "channels-last", dense),
            row(TRAINING, "bfloat16", "channels-last", dense / 2),
            row(TRAINING, "float32", OURS, ours, 0.1, dense / ours),
            row(TRAINING, "bfloat16", OURS, ours / 2, 0.1, dense / ours),
            row(TRAINING, "float32", OURS, ours * 5, 0.5, dense / ours / 5),
            row(TRAINING, "bfloat16", OURS, ours * 5, 0.5, dense / ours / 10),
            row(TRAINING, "float32", "SparseProp", dense * 2, 0.1, 0.5),
            *(row(part, "float32", OURS, 1.0, 0.1) for part in PARTS),
        ]
        layers.append(measured(layer, count, times))
    return {
        **ABOUT,
        "network": "wrn-22-2",
        "batch": 128,
        "workload": "wrn-22-2-128",
        "shapes": 2,
        "layers": layers,
    }


def test_the_layers_are_the_convolutions_of_the_network_without_the_first():
    layers = WORKLOADS["wrn-22-2-128"].layers()
    model = WideResNet(22, 2)
    weights = sum(p.numel() for p in model.parameters() if p.dim() == 4)
    assert sum(layer.weights * count for layer, count in layers.items()) == (
        weights - model.stem.weight.numel()
    )
    assert layers[Layer(64, 64, 128, size=16, kernel=3)] == 5
    assert {layer.padding for layer in layers if layer.kernel == 3} == {1}


def test_the_multiplications_of_resnet50_are_those_that_torchvision_publishes():
    layers = WORKLOADS["imagenet-resnet50-1"].layers()
    inner = sum(layer.weights * layer.uses * count for layer, count in layers.items())
    stem, head = 64 * 3 * 7**2 * 112**2, 2048 * 1000
    published = ResNet50_Weights.IMAGENET1K_V2.meta["_ops"]
    assert (inner + stem + head) / 1e9 == pytest.approx(published, abs=0.005)


def test_gpt2_has_its_85_million_weights_in_linear_layers():
    layers = WORKLOADS["gpt2-512"].layers()
    assert sum(layer.weights * count for layer, count in layers.items()) == 12 * 12 * 768**2
    assert {layer.input_shape for layer in layers} == {(512, 768), (512, 3072)}


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ({0.1: 2.0, 0.4: 0.5}, "0.20"),
        ({0.1: 3.0, 0.2: 1.0, 0.4: 0.5}, "0.20"),
        ({0.5: 1.2, 0.1: 4.0}, "> 0.5"),
        ({0.05: 0.9, 0.1: 0.5}, "< 0.05"),
    ],
)
def test_break_even_lies_where_the_ratio_crosses_one(ratios, expected):
    assert break_even(ratios) == expected


def test_a_networks_ratio_is_of_sums_over_its_layers_each_as_often_as_it_occurs(record):
    layers = record["layers"]
    assert speedups(layers, TRAINING, FP32) == {
        0.1: pytest.approx((4 + 3 * 32) / (5 + 3 * 8)),
        0.5: pytest.approx((4 + 3 * 32) / (25 + 3 * 40)),
    }
    assert speedups(layers, TRAINING, MIXED)[0.1] == pytest.approx((2 + 3 * 16) / (5 + 3 * 8))
    assert losers(layers, TRAINING, BF16) == [Layer(16, 32, 128, size=32)]


def test_the_report_says_where_sparse_wins_and_where_it_loses(record, tmp_path):
    limits = {**ABOUT, "limits": {"multiply-adds from registers": 100.0}}
    text = "\n".join(report.report_lines([limits, record], tmp_path))
    assert "3.4 times as fast with the kernels as in the fastest dense implementation in" in text
    assert "Dense code is faster above density 0.34 in float32" in text
    assert "At density 0.1 dense code is faster in 1 of 2 shapes: 16 -> 32, 1x1, 32x32." in text
    assert "| wrn-22-2, 128 | P | training | fp32 / fp32 | 100 | 3.45 | 0.69 | 0.34 |" in text
    assert "| 64 -> 64, 3x3, 16x16 | 3 | 32, channels-last | 16, channels-last | 4.00" in text
    assert "| wrn-22-2, 128 | P | training | - | 0.50 | - | 3.45 |" in text
    assert "| P | avx2 | multiply-adds from registers | 100 |" in text


def test_the_report_names_networks_that_lose_in_inference(record):
    for one in record["layers"]:
        one["times"] += [
            row(INFERENCE, "float32", "channels-last", 2.0),
            row(INFERENCE, "bfloat16", "channels-last", 1.0),
            row(INFERENCE, "float32", OURS, 1.0, 0.1, 2.0),
            row(INFERENCE, "bfloat16", OURS, 1.5, 0.1, 0.7),
        ]
    *_, last = summary.summary([record])
    assert last.endswith("dense code is faster in these networks: wrn-22-2, 128 (bf16).")


def test_useful_operations_are_those_with_live_weights(record):
    (line,) = [one for one in report.rates_table([record]) if "float32" in one]
    small = 2 * round(0.1 * 16 * 32) * 128 * 32**2
    large = 2 * round(0.1 * 64 * 64 * 9) * 128 * 16**2
    rate = f"{(small + 3 * large) / 4e-3 / 1e9:.0f}"
    alone = f"{100 / (3 * 4):.2f}"
    assert line == f"| wrn-22-2, 128 | P | float32 | {rate} | {rate} | {rate} | {alone} |"


def test_a_network_that_is_not_complete_has_no_sum(record, tmp_path):
    record["shapes"] = 9
    text = "\n".join(report.report_lines([record], tmp_path))
    assert "2 of 9 shapes have been measured." in text
    assert "Not measured, or not in full: wrn-22-2 128, cifar-resnet50 128" in text
    assert "Kernels: sums over networks\n\nNumbers are" in text
    assert "| wrn-22-2, 128 | P | training |" not in text


def test_runs_with_other_instructions_or_threads_stay_apart(record):
    other = {**record, "threads": 2, "machine": {**MACHINE, "isa": "AVX2"}}
    assert file_suffix(other) == "-restricted-to-avx2-2-threads"
    assert runs.title(other) == "wrn-22-2, 128, 2 threads"
    assert report.processor_of(other) == f"{report.processor_of(record)}, restricted to AVX2"
    restricted = {**other, "threads": 1}
    assert summary.summary([record]) == summary.summary([record, other, restricted])


def test_results_with_amx_stay_apart_and_have_a_sentence_of_their_own(record):
    amx = {**record, "machine": {**MACHINE, "flags": ["amx_bf16"]}}
    assert file_suffix(record) == ""
    assert file_suffix(amx) == "-amx"
    assert report.processor_of(amx) == f"{report.processor_of(record)}, AMX"
    assert runs.ordinary([record, amx]) == [record]
    assert runs.of_kind([record, amx], AMX) == [amx]
    plain = summary.summary([record])
    said = summary.summary([record, amx])
    assert said[: len(plain)] == plain
    assert len(said) == len(plain) + 2
    assert "wrn-22-2, 128 in training" in said[-1]


def test_results_of_intel_without_amx_stay_apart(record):
    intel = {**record, "machine": {**MACHINE, "processor": "Intel(R) Xeon(R) Processor"}}
    assert file_suffix(intel) == "-intel"
    assert runs.ordinary([record, intel]) == [record]
    assert runs.of_kind([record, intel], INTEL) == [intel]
    assert summary.summary([record]) == summary.summary([record, intel])


def test_results_with_avx2_only_stay_apart_and_have_a_sentence_of_their_own(record):
    machine = {**MACHINE, "flags": ["avx2", "fma"]}
    avx2 = {**record, "machine": machine}
    assert file_suffix(avx2) == "-avx2"
    assert file_suffix({**avx2, "machine": {**machine, "flags": ["avx2", "avx512f"]}}) == ""
    assert report.processor_of(avx2) == f"{report.processor_of(record)}, AVX2 only"
    assert runs.ordinary([record, avx2]) == [record]
    plain = summary.summary([record])
    *others, last = summary.summary([record, avx2])
    assert others[: len(plain)] == plain
    assert "wrn-22-2, 128 in training, 3.4 times" in last
    assert "float32" in last
    assert "bfloat16" not in last


def test_a_ratio_is_to_the_fastest_dense_code_and_hopeless_code_is_timed_once(monkeypatch):
    # The fake clock makes a call take as long as its return value; the last three are the rounds.
    monkeypatch.setattr("benchmarks.speed.kernels.measuring.seconds", lambda call, **_: call())
    takes = {
        ("slow", None): iter([9.0, 8.0]),
        ("fast", None): iter([5.0, 4.0, 4.0, 6.0, 8.0]),
        (OURS, 0.1): iter([9.0, 9.0, 1.0, 3.0, 2.0]),
        ("peer", 0.1): iter([7.0, 6.5]),
    }
    contenders = [
        Contender(INFERENCE, "float32", name, density, lambda times=times: next(times))
        for (name, density), times in takes.items()
    ]
    rows = {one["implementation"]: one for one in time_contenders(contenders, 3, "thread")}
    assert rows["slow"]["milliseconds"] == [8000.0] * 3
    assert rows["slow"]["once"]
    assert "once" not in rows["fast"]
    assert rows["fast"]["milliseconds"] == [6000.0, 5000.0, 7000.0]
    assert rows[OURS]["milliseconds"] == [2000.0, 1500.0, 2500.0]
    # Round by round the ratios are 4, 2 and 4.
    assert rows[OURS]["speedup"] == [4.0, 3.0, 4.0]
    assert rows["peer"]["once"]
    assert rows["peer"]["speedup"][0] == pytest.approx(6.0 / 6.5, abs=1e-3)


def test_a_training_pass_has_both_gradients():
    x, weight = torch.randn(3, 4), torch.randn(2, 4)
    found = passes(torch.nn.functional.linear, x, weight, training=True)
    assert [one.shape for one in found[TRAINING]()] == [(3, 4), (2, 4)]
    assert found[INFERENCE]().equal(x @ weight.T)


@needs_kernels
def test_a_layer_is_timed_by_every_implementation():
    one = measure_layer(Layer(8, 16, 4, size=6, kernel=3), (0.1, 0.5), True, 1, "thread")
    ours = {
        (r["what"], r["precision"], r["density"])
        for r in one["times"]
        if r["implementation"] == OURS
    }
    precisions = ("float32", "bfloat16")
    assert ours == {
        *((what, p, d) for what in (TRAINING, INFERENCE) for p in precisions for d in (0.1, 0.5)),
        *((part, p, 0.1) for part in PARTS for p in precisions),
    }
    dense = {r["implementation"] for r in one["times"] if "density" not in r}
    assert dense == {"channels-last", "contiguous"}


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the command on a network of two layers, with times that are made up.

    Returns the outputs of the layers that it times; the run can be interrupted in one of them.
    """
    shapes = [Layer(8, 8, 2), Layer(8, 4, 2)]
    tiny = Workload("gpt2", 1, False, lambda: Counter(dict.fromkeys(shapes, 12)))
    monkeypatch.setitem(WORKLOADS, "gpt2-1", tiny)
    monkeypatch.setattr(figure, "measure_limits", lambda _: {})
    monkeypatch.setattr("benchmarks.speed.cli.write_report", lambda _: None)

    def run(*options, compiled="H", interrupted_in=None):
        timed = []

        def measure_layer(layer, densities, *_):
            if layer.outputs == interrupted_in:
                raise KeyboardInterrupt
            timed.append(layer.outputs)
            return {**layer.as_record(), "times": [{"density": one} for one in densities]}

        about = {**ABOUT, "kernels": compiled}
        monkeypatch.setattr(figure, "about_machine", lambda _: about)
        monkeypatch.setattr(figure, "measure_layer", measure_layer)
        arguments = ["kernels", "--workloads", "gpt2-1", "--out", str(tmp_path), *options]
        if interrupted_in is None:
            main(arguments)
        else:
            with pytest.raises(KeyboardInterrupt):
                main(arguments)
        return timed

    return run


def layers_in(folder):
    record = json.loads((folder / "kernels-gpt2-1.json").read_text())
    assert record["shapes"] == len(record["layers"])
    return [one["outputs"] for one in record["layers"]]


@needs_kernels
def test_layers_that_have_been_measured_are_not_measured_again(run, tmp_path):
    assert run() == [8, 4]
    assert run() == []
    assert run("--densities", "0.1") == []
    assert run("--densities", "0.1", "0.15") == [8, 4]
    assert run("--densities", "0.1", "0.15", compiled="other") == [8, 4]
    assert layers_in(tmp_path) == [8, 4]


@needs_kernels
@pytest.mark.parametrize(
    ("options", "compiled"),
    [(["--again"], "H"), (["--densities", "0.1", "0.15"], "H"), ([], "other")],
)
def test_results_stay_until_all_layers_are_measured_again(run, tmp_path, options, compiled):
    run()
    before = (tmp_path / "kernels-gpt2-1.json").read_text()
    assert run(*options, compiled=compiled, interrupted_in=4) == [8]
    assert (tmp_path / "kernels-gpt2-1.json").read_text() == before
    assert run(*options, compiled=compiled) == [4]
    assert layers_in(tmp_path) == [8, 4]
    assert not list(tmp_path.glob("*.part"))


@needs_kernels
def test_first_run_that_is_interrupted_is_continued_and_leaves_no_results_before(run, tmp_path):
    assert run(interrupted_in=4) == [8]
    assert not (tmp_path / "kernels-gpt2-1.json").exists()
    assert run() == [4]
    assert layers_in(tmp_path) == [8, 4]


@needs_kernels
def test_layers_of_an_interrupted_run_with_other_kernels_are_measured_again(run, tmp_path):
    assert run(interrupted_in=4) == [8]
    assert run(compiled="other") == [8, 4]
    assert layers_in(tmp_path) == [8, 4]
