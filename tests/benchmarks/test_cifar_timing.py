"""Wall times of trained networks: how they are measured, and the arithmetic of their ratios."""

import json

import numpy as np
import pytest
import torch

from benchmarks.cifar import cli
from benchmarks.cifar.config import load_preset
from benchmarks.cifar.grid import DENSE_RUN, RunSpec, Study, Timing
from benchmarks.cifar.plan import Job
from benchmarks.cifar.records import Folder, append_result
from benchmarks.cifar.structure import Structure, masked_by
from benchmarks.cifar.timing import (
    COMPACTED,
    DENSE,
    ZEROS,
    compare,
    form_of,
    measure_inference,
    measure_training,
    step_ratio,
    time_jobs,
)
from benchmarks.cifar.worker import Setup
from benchmarks.common.formats import FORMATS
from benchmarks.common.rounds import Rounds

CPU = torch.device("cpu")
SMALL = ("small-dense", None, 0.2, 0)
STUDY = """
[[choices.studies]]
name = "channels"
methods = ["small-dense", "rigl", "rigl-struct", "srigl"]
inits = ["erk"]
densities = [0.2]
seeds = [0]

[choices.timing]
study = "channels"
batches = [1, 4]
rounds = 2
training_rounds = 1
"""


def test_ratio_of_steps_counts_mask_updates_as_often_as_the_run_makes_them():
    ordinary, update, dense = [2.0, 3.0, 4.0], [10.0, 12.0, 14.0], [1.0, 2.0, 2.0]
    rounds = [
        {"own": {"ordinary": o, "update": u}, "dense": {"ordinary": d}}
        for o, u, d in zip(ordinary, update, dense, strict=True)
    ]
    # 1 step in 100 is an update: 99 * 2 + 10 = 208, 99 * 3 + 12 = 309, 99 * 4 + 14 = 410.
    expected = np.quantile([208 / 100, 309 / 200, 410 / 200], [0.25, 0.5, 0.75])
    found = step_ratio(Rounds(rounds), updates_a_step=0.01)
    assert [found["q1"], found["median"], found["q3"]] == pytest.approx(expected, abs=1e-6)
    assert found["count"] == 3


def test_ratio_of_inference_is_of_the_fastest_ways_in_the_same_round():
    seconds = {
        "own, float32": [4.0, 4.0, 9.0],
        "own, bfloat16": [1.0, 2.0, 3.0],
        "dense, float32": [8.0, 8.0, 6.0],
        "dense, bfloat16": [9.0, 9.0, 9.0],
    }
    found = compare([{name: times[i] for name, times in seconds.items()} for i in range(3)])
    assert [found[side]["implementation"] for side in ("own", "dense")] == ["bfloat16", "float32"]
    expected = np.quantile([1 / 8, 2 / 8, 3 / 6], [0.25, 0.5, 0.75])
    ratio = found["ratio"]
    assert [ratio["q1"], ratio["median"], ratio["q3"]] == pytest.approx(expected, abs=1e-6)
    assert found["own"]["milliseconds"]["median"] == 2000.0


def test_networks_are_timed_in_the_form_that_computes_what_the_run_left(protocol, tmp_path):
    def of(method, **named):
        spec = RunSpec(method, None if method == "small-dense" else "erk", 0.2, 0)
        return form_of(protocol, spec, CPU, **named)

    small, zeros = of("small-dense"), of("rigl")
    assert (small.kind, zeros.kind) == (DENSE, ZEROS)
    assert small.about["parameters"] < zeros.about["parameters"] / 3
    weights = [p for p in zeros.model.parameters() if p.dim() > 1]
    share = sum(int(w.count_nonzero()) for w in weights) / sum(w.numel() for w in weights)
    assert share == pytest.approx(0.2, abs=0.01)
    # Half of the inner channels of the first block are dropped, with all that they own.
    dense = form_of(protocol, DENSE_RUN, CPU).model
    masks = {n: torch.ones_like(p, dtype=torch.bool) for n, p in dense.named_parameters()}
    (first, inner), (second, _) = [(n, p) for n, p in dense.named_parameters() if p.dim() == 4][1:3]
    masks[first][: len(inner) // 2] = False
    masks = {name: mask for name, mask in masks.items() if mask.dim() > 1}
    optimizer = masked_by(dense, masks)
    Structure.of(dense, optimizer).save(tmp_path / "structure.pt")
    compacted = of("srigl", structure=tmp_path / "structure.pt")
    assert compacted.kind == COMPACTED
    smaller = dict(compacted.model.named_parameters())
    assert smaller[first].shape[0] == len(inner) // 2
    assert smaller[second].shape[1] == len(inner) // 2
    assert compacted.about["share_reached"] == 1.0
    for form in (small, zeros, compacted):
        assert not form.model.training
        assert not any(module._forward_pre_hooks for module in form.model.modules())


def test_inference_is_timed_in_every_format_and_condensed_on_both_sides(protocol):
    sparse = form_of(protocol, RunSpec("rigl", "erk", 0.2, 0), CPU)
    threads = torch.get_num_threads()
    found = measure_inference(sparse, form_of(protocol, DENSE_RUN, CPU), batch=2, rounds=2)
    counts = {"1 thread", "1 thread" if threads == 1 else f"{threads} threads"}
    expected = {
        f"{side}, {name}, {count}"
        for side in ("own", "dense")
        for name in (*FORMATS, "condensed")
        for count in counts
    }
    assert found["medians"].keys() == expected
    assert torch.get_num_threads() == threads


def test_network_is_condensed_once_for_a_batch_and_a_number_of_threads(protocol):
    form = form_of(protocol, RunSpec("rigl", "erk", 0.2, 0), CPU)
    images = torch.randn(2, 3, 32, 32)
    condensed = form.condensed(images, 1)
    torch.testing.assert_close(condensed(images), form.model(images), rtol=0.05, atol=0.05)
    assert form.condensed(torch.randn(2, 3, 32, 32), 1) is condensed
    assert form.condensed(images[:1], 1) is not condensed


def test_training_is_timed_with_mask_updates_where_the_method_makes_any(protocol):
    training = protocol.training.model_copy(update={"batch_size": 4})
    protocol = protocol.model_copy(update={"training": training})
    found = {
        method: measure_training(
            protocol, RunSpec(method, init, 0.2, 0), CPU, rounds=2, updates_a_step=share
        )
        for method, init, share in (("small-dense", None, 0.0), ("rigl-struct", "erk", 0.01))
    }
    assert found["small-dense"]["update"] is None
    assert found["rigl-struct"]["update"]["count"] == 2
    for one in found.values():
        assert one["ratio"]["count"] == one["dense"]["count"] == 2
        assert one["ratio"]["median"] > 0


def test_finished_runs_are_timed_once_and_the_report_has_them_or_says_that_it_has_not(
    quick_preset, cifar_tree, tmp_path, capsys
):
    quick_preset.write_text(quick_preset.read_text() + STUDY)
    out = tmp_path / "out"
    options = ["--preset", str(quick_preset), "--data-dir", str(cifar_tree), "--out", str(out)]
    options += ["--threads", "1"]
    assert cli.main([*options, "--studies", "channels"]) == 0
    assert "not measured yet" in (out / "report.md").read_text()
    (lost,) = (out / "structures").glob("srigl*")
    kept = lost.read_bytes()
    lost.unlink()
    assert cli.main([*options, "--studies", "timing"]) == 0
    assert f"not timed, because {lost.name} is missing" in capsys.readouterr().out
    three = ["small-dense-0.2-seed0", "rigl-erk-0.2-seed0", "rigl-struct-erk-0.2-seed0"]
    assert labels(out) == three
    lost.write_bytes(kept)
    assert cli.main([*options, "--studies", "timing"]) == 0
    assert labels(out) == [*three, "srigl-erk-0.2-seed0"]
    assert "not measured yet" not in (out / "report.md").read_text()
    for line in lines(out):
        assert {"processor", "threads", "torch", "git_commit"} <= line["environment"].keys()
        assert line["config"]["batches"] == [1, 4]
        assert line["protocol"] == "REDUCED protocol 'quick'"
        assert [one["batch"] for one in line["inference"]] == [1, 4]
        assert line["busy_with_others"] >= 0
    assert str(tmp_path) not in (out / "timings.jsonl").read_text()


def test_times_under_other_conditions_are_measured_again(protocol, tmp_path):
    folder, job = Folder(tmp_path), Job(with_timing(protocol, 1), RunSpec(*SMALL), "data")
    # Rounds are no part of a run's name.
    again = Job(with_timing(protocol, 2), RunSpec(*SMALL), "data")
    assert again.key == job.key
    append_result(folder.results, {"key": job.key, "updates": None, "steps": 1})
    for one in (job, job, again):
        time_jobs([one], Setup(folder), 1)
    assert [line["config"]["rounds"] for line in lines(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('study = "channels"', 'study = "chanels"', "timing.study.*'chanels'"),
        ("\nrounds = 2", "\nrounds = 0", "timing.rounds .*got 0"),
        ("training_rounds = 1", "training_rounds = 0", "timing.training_rounds .*0"),
        ("batches = [1, 4]", "batches = []", "timing.batches"),
        ('name = "channels"', 'name = "timing"', "'timing' is taken"),
    ],
)
def test_timing_that_makes_no_sense_is_refused_by_name(tiny_preset, old, new, named):
    tiny_preset.write_text(tiny_preset.read_text() + STUDY.replace(old, new))
    with pytest.raises(ValueError, match=named):
        load_preset(str(tiny_preset))


def with_timing(protocol, rounds):
    study = Study(
        name="channels", methods=("small-dense",), inits=("erk",), densities=(0.2,), seeds=(0,)
    )
    timed = Timing(study="channels", batches=(1,), rounds=rounds, training_rounds=1)
    choices = protocol.choices.model_copy(update={"studies": (study,), "timing": timed})
    training = protocol.training.model_copy(update={"batch_size": 4})
    return protocol.model_copy(update={"choices": choices, "training": training})


def lines(out):
    return [json.loads(line) for line in (out / "timings.jsonl").read_text().splitlines()]


def labels(out):
    return [line["label"] for line in lines(out)]
