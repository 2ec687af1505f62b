"""What is going to be run, said before it is, and with or without data."""

import dataclasses
import json
import re

import pytest
import torch

import sparseopt
from benchmarks.cifar import cli
from benchmarks.cifar.images.batches import splits_for
from benchmarks.cifar.images.data import load_digits
from benchmarks.cifar.models.networks import build_model
from benchmarks.cifar.options import build_parser
from benchmarks.cifar.protocols.choices import Search, expand
from benchmarks.cifar.protocols.methods import METHODS
from benchmarks.cifar.protocols.presets import Change, load_preset, load_protocols
from benchmarks.cifar.protocols.runspec import RunSpec
from benchmarks.cifar.protocols.tables import ProtocolError
from benchmarks.cifar.records.folder import Folder
from benchmarks.cifar.records.results import append_result
from benchmarks.cifar.running.checkpoint import random_state
from benchmarks.cifar.running.training import Run
from benchmarks.cifar.scheduling import planning
from benchmarks.cifar.scheduling.durations import Forecast, Later
from benchmarks.cifar.scheduling.jobs import Job, with_sources
from benchmarks.cifar.scheduling.planning import Estimator, Size
from benchmarks.cifar.scheduling.worker import Setup
from benchmarks.cifar.selecting import choose_protocols, parts_of
from benchmarks.cifar.session import Chosen, Means, Plan
from sparseopt import SparseOptimizer


def total(output):
    found = re.search(r"together ([\d,]+) runs, ([\d,]+) steps, about (.*), writing", output)
    return int(found[1].replace(",", "")), int(found[2].replace(",", ""))


@pytest.mark.usefixtures("unmeasured")
def test_plan_of_the_whole_paper_needs_no_data_and_writes_nothing(tmp_path, capsys):
    arguments = ["--preset", "paper", "--all", "--dry-run", "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 0
    output = capsys.readouterr().out
    assert "paper protocol: WRN-22-2, CIFAR-10, 250 epochs" in output
    assert f"measuring a few steps with sparseopt {sparseopt.__version__}, torch" in output
    assert "paper-cifar100 protocol: ResNet-50, CIFAR-100, 250 epochs" in output
    assert "searches for alpha and delta_t: at most 270 runs, 23,760,000 steps" in output
    for variant in ("lottery-erk-0.1", "rigl-3x-uniform-0.2", "rigl-reinit-erk-0.1"):
        assert re.search(rf"paper: {variant} +3 x", output)
        assert re.search(rf"paper-cifar100: {variant} +3 x", output)
    assert re.search(r"paper: rigl-2x-erk-0.1 +3 x +176,000 steps", output)
    assert re.search(r"paper: rigl-uniform-0.17\d+ +3 x +88,000 steps", output)
    assert re.search(r"paper: rigl-erk-0.1-alpha0.5-dt750-lr0.005 +1 x", output)
    runs, steps = total(output)
    # All lengths are one, two or three times 88,000 steps.
    assert steps % 88_000 == 0
    assert runs > 700
    assert list(tmp_path.iterdir()) == []


def test_plan_counts_what_is_finished_and_what_is_to_do(quick_preset, image_tree, tmp_path, capsys):
    arguments = ["--preset", str(quick_preset), "--data-dir", str(image_tree)]
    arguments += ["--out", str(tmp_path / "out"), "--threads", "1"]
    assert cli.main([*arguments, "--methods", "static"]) == 0
    capsys.readouterr()
    assert cli.main([*arguments, "--methods", "static", "rigl-3x", "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "2 runs, 1 of them finished, 1 to do" in output
    assert "static-erk" not in output
    assert total(output) == (1, 36)
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 1


def test_estimate_has_the_steps_and_bytes_that_a_run_has(tiny_preset):
    protocol = load_preset(str(tiny_preset))
    digits = load_digits()
    estimator = Estimator({protocol: Size.of_data(protocol, digits)}, torch.device("cpu"))
    splits = splits_for(protocol, digits, torch.device("cpu"))
    before = random_state()["torch_rng"]
    for method in ("rigl", "rigl-2x"):
        spec = RunSpec(method, "erk", 0.2, 0)
        estimate = estimator.estimate(Job(protocol, spec, ""))
        run = Run(protocol, spec, splits)
        assert estimate.steps == run.total_steps
        # Momentum is there after a step, of live weights only.
        assert estimate.checkpoint == pytest.approx(len(run.checkpoint()), rel=0.2)
        assert estimate.seconds > 0
    estimator.estimate(Job(protocol, RunSpec("dense", None, None, 0), ""))
    torch.set_rng_state(before)


def test_jobs_come_behind_those_that_they_build_on(tiny_preset):
    protocol = load_preset(str(tiny_preset))
    specs = [RunSpec(m, "erk", 0.2, 0) for m in ("lottery", "rigl-reinit", "pruning", "dense")]
    ordered = [job.spec.method for job in with_sources(Job(protocol, s, "") for s in specs)]
    assert ordered == ["pruning", "lottery", "rigl-sm", "rigl-reinit", "dense"]


def test_time_left_is_corrected_by_what_finished_runs_took(tiny_preset):
    protocol = load_preset(str(tiny_preset))
    jobs = [Job(protocol, RunSpec("rigl", "erk", 0.2, seed), "") for seed in range(4)]
    forecast = Forecast({job.key: 100.0 for job in jobs}, workers=2)
    assert forecast.left() == 200.0
    forecast.begin(jobs[0], 0.0)
    forecast.end(jobs[0], 0.0, 200.0)
    # Twice as slow as measured, and three are left for two workers.
    assert forecast.left() == 300.0
    forecast.at(jobs[1], 0.5)
    assert forecast.left() == 250.0
    for job in jobs:
        forecast.at(job, 1.0)
    assert forecast.left() == 0.0


def test_time_left_has_the_search_in_it_and_knows_its_runs_from_their_trial_on(tiny_preset):
    protocol = load_preset(str(tiny_preset))
    main = Job(protocol, RunSpec("dense", None, None, 0), "")
    trial = [Job(protocol, RunSpec("rigl", "erk", 0.2, s, alpha=0.4), "") for s in range(2)]
    # Three trials of two runs, of which the first alone waits for no other.
    later = Later(6, 50.0, at_random=2, at_a_time=2)
    forecast = Forecast({main.key: 100.0}, 4, {"search": later})
    assert forecast.left() == 100.0 + 6 * 50.0 / 2
    forecast.begin(main, 0.0)
    forecast.end(main, 0.0, 100.0)
    forecast.begin_trials("search", trial, trial)
    # Two of six, which take as long as one.
    assert forecast.left() == 50.0 + 4 * 50.0 / 2
    forecast.begin(trial[0], 0.0)
    forecast.end(trial[0], 0.0, 50.0)
    forecast.at(trial[1], 0.5)
    assert forecast.left() == 25.0 + 100.0
    # A trial that was interrupted is not counted twice, and what it has finished is.
    forecast.begin_trials("search", trial, [])
    assert forecast.left() == 100.0


@pytest.mark.parametrize(("workers", "rounds"), [(1, 10), (2, 5), (4, 3), (16, 2)])
def test_time_left_has_random_trials_together_and_the_others_one_by_one(workers, rounds):
    # Eight runs at random, then one trial of two.
    later = Later(10, 50.0, at_random=8, at_a_time=min(2, workers))
    assert Forecast({}, workers, {"search": later}).left() == rounds * 50.0


def test_plan_has_the_random_trials_of_a_search_together_and_the_others_in_turn(
    tiny_preset, tmp_path
):
    protocol = load_preset(str(tiny_preset))
    search = Search("rigl", ("erk",), (0.2,), (0, 1), 3, (0.1, 0.6), (2, 6, 1))
    protocol = dataclasses.replace(
        protocol, choices=dataclasses.replace(protocol.choices, search=search)
    )
    folder = Folder(tmp_path)
    chosen = [Chosen(protocol, ("main", "search"), "data", 10)]
    means = Means(Setup(folder), workers=8)

    class Even(Estimator):
        def estimate(self, job):
            return planning.Estimate(steps=21, seconds=100.0, checkpoint=1000, result=10)

    def planned():
        plan, said = Plan(chosen, means), []
        plan.measure(Even({}, torch.device("cpu")))
        plan.show_estimates(said.append)
        return plan.forecast().left(), said[-2:]

    # Two main runs at a time, then two trials of two runs at random, then the third.
    left, (searches, together) = planned()
    assert left == 100.0 + 2 * 100.0
    assert searches.endswith("at most 6 runs, 126 steps, about 3 min")
    assert together.startswith("together 8 runs, 168 steps, about 5 min by 8 workers, writing")
    assert together.endswith("4.1 kB")
    spec = RunSpec("rigl", "erk", 0.2, 1, alpha=0.4, delta_t=4)
    record = {"key": spec.key(protocol, "data"), "run": spec.as_dict()}
    append_result(folder.results, record)
    left, (searches, _) = planned()
    assert left == 100.0 + 2 * 100.0
    assert "at most 5 runs" in searches


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--studies", "tables"], "--studies takes of main, densities, .*, timing, got 'tables'"),
        (["--all", "--protocols", "mnist"], "has 'paper', 'paper-cifar100', got 'mnist'"),
        (["--all", "--set", "training.epoch=1"], "unknown setting 'epoch'"),
        (["--all", "--model", "nowhere:model"], "--model nowhere:model: No module"),
        (["--all", "--model", "math:pi"], "--model math:pi"),
        (["--all", "--workers", "2", "--cluster", "local"], "exclude each other"),
    ],
)
def test_choices_that_there_are_not_are_named(arguments, message, tmp_path, capsys):
    base = ["--preset", "paper", "--dry-run", "--out", str(tmp_path / "out")]
    assert cli.main([*base, *arguments]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


OWN = """
import torch

def scaled(num_classes, width_scale=1.0):
    width = max(1, round(16 * width_scale))
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, width, 3, stride=4), torch.nn.Flatten(),
        torch.nn.Linear(width * 64, num_classes),
    )
"""


def test_own_network_on_own_images_is_trained_by_the_methods(
    quick_preset, image_tree, tmp_path, monkeypatch, capsys
):
    (tmp_path / "my_scaled_network.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    arguments = ["--preset", str(quick_preset), "--data-dir", str(image_tree), "--out", "out"]
    arguments += ["--model", "my_scaled_network:scaled", "--threads", "1"]
    assert cli.main([*arguments, "--methods", "dense", "small-dense", "rigl"]) == 0
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    records = {record["run"]["method"]: record for record in map(json.loads, lines)}
    width, small = 16, round(16 * 0.2**0.5)
    assert records["dense"]["parameters"]["total"] == 28 * width + 3 * (64 * width + 1)
    assert records["small-dense"]["parameters"]["total"] == 28 * small + 3 * (64 * small + 1)
    assert records["rigl"]["density"] == pytest.approx(0.2, abs=1e-3)
    assert records["rigl"]["protocol"]["settings"]["dataset"] == "folder"
    assert "my_scaled_network:scaled, own images at 3x32x32" in capsys.readouterr().out


def test_curves_are_written_for_tensorboard_on_request(quick_preset, image_tree, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "out"
    arguments = ["--preset", str(quick_preset), "--data-dir", str(image_tree), "--out", str(out)]
    assert cli.main([*arguments, "--methods", "rigl", "--tensorboard", "--threads", "1"]) == 0
    record = json.loads((out / "results.jsonl").read_text())
    events = EventAccumulator(str(out / "tensorboard" / record["key"]))
    events.Reload()
    written = [(event.step, event.value) for event in events.Scalars("validation_accuracy")]
    expected = [(4 * e["epoch"], e["validation_accuracy"]) for e in record["curve"]]
    assert written == [(step, pytest.approx(value)) for step, value in expected]
    assert "density of layers/stem.weight" in events.Tags()["scalars"]


@pytest.fixture
def unmeasured(monkeypatch):
    """Plans without the measuring, which is not the matter and long for a ResNet-50."""
    cost = planning.Cost(0.5, 1_000_000, 54)
    monkeypatch.setattr(Estimator, "_measure", lambda self, protocol, spec: cost)


@pytest.mark.usefixtures("unmeasured")
def test_parts_of_a_preset_can_be_run_alone(tmp_path, capsys):
    base = ["--preset", "smoke", "--dry-run", "--out", str(tmp_path / "out")]
    assert cli.main([*base, "--studies", "learning-rate", "longer"]) == 0
    variants = re.findall(
        r"^  (?:smoke[-\w]*: )?(\S+) +\d+ x", capsys.readouterr().out, re.MULTILINE
    )
    assert set(variants) == {
        "rigl-3x-uniform-0.2",
        "rigl-erk-0.2",
        "rigl-erk-0.2-lr0.05",
        "rigl-erk-0.2-alpha0.4-dt20",
        "rigl-erk-0.2-alpha0.4-dt20-lr0.05",
    }
    assert cli.main([*base, "--studies", "search", "--protocols", "smoke"]) == 0
    output = capsys.readouterr().out
    assert "0 runs, 0 of them finished" in output
    assert "at most 5 runs" in output
    assert cli.main([*base, "--methods", "rigl", "--seeds", "3", "--protocols", "smoke"]) == 0
    output = capsys.readouterr().out
    assert "2 runs, 0 of them finished" in output
    assert "search" not in output


def chosen(*arguments):
    """The choices and the parts of ``cpu`` by these options."""
    options = build_parser().parse_args(["--preset", "cpu", *arguments])
    protocols = choose_protocols("cpu", options)
    (parts,) = parts_of(protocols, options)
    return protocols[0].choices, parts


def test_all_is_everything_narrowed_also_in_the_search():
    whole = load_preset("cpu").choices
    narrowing = ["--seeds", "3", "4", "--densities", "0.3", "--inits", "uniform"]
    choices, parts = chosen("--all", *narrowing)
    assert parts == whole.parts
    for part in (choices, *choices.studies, choices.search):
        assert (part.seeds, part.densities, part.inits) == ((3, 4), (0.3,), ("uniform",))
    assert choices.search.trials == whole.search.trials
    assert chosen(*narrowing)[1] == ("main",)


def test_search_and_studies_are_of_the_methods_given():
    choices, parts = chosen("--all", "--methods", "rigl", "set")
    assert "search" in parts
    assert choices.methods == ("rigl", "set")
    methods = {study.name: study.methods for study in choices.studies}
    assert methods["densities"] == methods["learning-rate"] == ("rigl",)
    assert methods["longer"] == ()
    choices, parts = chosen("--all", "--methods", "set")
    assert "search" not in parts
    assert "main" in parts
    # A study that is asked for by name is done with whatever methods are given.
    choices, parts = chosen("--studies", "densities", "search", "--methods", "set")
    assert parts == ("densities",)
    assert {study.name: study.methods for study in choices.studies}["densities"] == ("set",)
    with pytest.raises(ProtocolError, match="--studies search .* not among --methods set"):
        chosen("--studies", "search", "--methods", "set")


def test_densities_of_equal_flops_are_those_for_the_classes_that_there_are(tiny_preset):
    (study,) = [s for s in load_preset("smoke").choices.studies if s.name == "equal-flops"]
    protocol = load_preset(str(tiny_preset))
    choices = dataclasses.replace(protocol.choices, studies=(study,))
    protocol = dataclasses.replace(protocol, choices=choices)
    found = {}
    for classes in (10, 1000):
        (job,) = Chosen(protocol, ("equal-flops",), "", classes).jobs()
        flops = {}
        for init, density in (("erk", 0.2), ("uniform", job.spec.density)):
            model = build_model(protocol, RunSpec("dense", None, None, 0), classes)
            sparse = SparseOptimizer(
                torch.optim.SGD(model.parameters(), lr=0.1),
                model,
                method="static",
                density=density,
                init=init,
                total_steps=10,
            )
            flops[init] = sparse.flops(model, torch.zeros(1, 3, 32, 32)).inference_sparse
        assert flops["uniform"] == pytest.approx(flops["erk"], rel=5e-3)
        found[classes] = job.spec.density
    assert abs(found[10] - found[1000]) > 0.01


@pytest.mark.parametrize("preset", ["smoke", "cpu", "paper"])
def test_presets_have_something_for_every_table_and_figure(preset):
    first, *others = load_protocols(preset)
    choices = first.choices
    runs = [*expand(choices), *(run for study in choices.studies for run in expand(study))]
    assert {run.method for run in runs} == set(METHODS) - {"granet", "mest"}
    assert {run.init for run in runs} == {None, "erk", "uniform"}
    assert len({run.density for run in runs if run.density is not None}) > 1
    assert {run.lr for run in runs} > {None}
    assert any(study.flops_of == "erk" for study in choices.studies)
    assert choices.search.trials >= 5
    # CIFAR-100 takes a GPU.
    assert [other.model.kind for other in others] == ([] if preset == "cpu" else ["resnet"])
    for other in others:
        assert {"dense", "rigl", "rigl-sg", "rigl-sm", "lottery"} <= set(other.choices.methods)


def test_measuring_says_nothing_of_masks_that_so_few_steps_do_not_move(tiny_preset):
    protocol = load_preset(str(tiny_preset), [Change.parse("sparsity.delta_t=1000")])
    estimator = Estimator({protocol: Size(1000, 100, 100, 10)}, torch.device("cpu"))
    # Warnings are errors here.
    assert estimator.estimate(Job(protocol, RunSpec("rigl", "erk", 0.2, 0), "")).steps == 15
