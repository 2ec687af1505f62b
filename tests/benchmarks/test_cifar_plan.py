"""The plan of a session: printed before runs start, with and without data."""

import re

import pytest
import torch

import sparseopt
from benchmarks.cifar import cli, plan
from benchmarks.cifar.config import load_preset, load_protocols
from benchmarks.cifar.grid import RunSpec, expand
from benchmarks.cifar.methods import RECIPES
from benchmarks.cifar.models import full_model
from benchmarks.cifar.options import build_parser, choose
from benchmarks.cifar.plan import Job, Part, with_sources
from benchmarks.cifar.settings import ProtocolError
from sparseopt import SparseOptimizer


def total(output):
    found = re.search(
        r"together ([\d,]+) runs, ([\d,]+) steps, about (.*), one after the other", output
    )
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


def test_plan_counts_what_is_finished_and_what_is_to_do(quick_preset, cifar_tree, tmp_path, capsys):
    arguments = ["--preset", str(quick_preset), "--data-dir", str(cifar_tree)]
    arguments += ["--out", str(tmp_path / "out"), "--threads", "1"]
    assert cli.main([*arguments, "--methods", "static"]) == 0
    capsys.readouterr()
    assert cli.main([*arguments, "--methods", "static", "rigl-3x", "--dry-run"]) == 0
    output = capsys.readouterr().out
    assert "2 runs, 1 of them finished, 1 to do" in output
    assert "static-erk" not in output
    assert total(output) == (1, 36)
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 1


def test_jobs_come_after_the_jobs_that_they_build_on(tiny_preset):
    protocol = load_preset(str(tiny_preset))
    specs = [RunSpec(m, "erk", 0.2, 0) for m in ("lottery", "rigl-reinit", "pruning", "dense")]
    ordered = [job.spec.method for job in with_sources(Job(protocol, s, "") for s in specs)]
    assert ordered == ["pruning", "lottery", "rigl-sm", "rigl-reinit", "dense"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--studies", "tables"],
            "--studies tables: .* main, densities, .*, timing",
        ),
        (
            ["--all", "--set", "training.epoch=1"],
            "'training.epoch'; did you mean 'epochs'",
        ),
    ],
)
def test_choices_that_do_not_exist_are_named(arguments, message, tmp_path, capsys):
    base = ["--preset", "paper", "--dry-run", "--out", str(tmp_path / "out")]
    assert cli.main([*base, *arguments]) == 1
    assert re.search(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def unmeasured(monkeypatch):
    """Plans without measuring, which takes long for a ResNet-50 and is not tested here."""
    monkeypatch.setattr(plan, "_seconds_a_step", lambda protocol, spec, device: 0.5)


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
    assert cli.main([*base, "--studies", "search", "--set", "also=[]"]) == 0
    output = capsys.readouterr().out
    assert "0 runs, 0 of them finished" in output
    assert "at most 5 runs" in output
    assert cli.main([*base, "--methods", "rigl", "--seeds", "3", "--set", "also=[]"]) == 0
    output = capsys.readouterr().out
    assert "2 runs, 0 of them finished" in output
    assert "search" not in output


def chosen(*arguments):
    """The choices and the parts of ``cpu`` that these options select."""
    options = build_parser().parse_args(["--preset", "cpu", *arguments])
    ((protocol, parts),) = choose("cpu", options)
    return protocol.choices, parts


def test_all_narrows_every_part_and_the_search_too():
    whole = load_preset("cpu").choices
    narrowing = ["--seeds", "3", "4", "--densities", "0.3", "--inits", "uniform"]
    choices, parts = chosen("--all", *narrowing)
    assert parts == whole.parts
    for part in (choices, *choices.studies, choices.search):
        assert (part.seeds, part.densities, part.inits) == ((3, 4), (0.3,), ("uniform",))
    assert choices.search.trials == whole.search.trials
    assert chosen(*narrowing)[1] == ("main",)


def test_search_and_studies_use_only_the_given_methods():
    choices, parts = chosen("--all", "--methods", "rigl", "set")
    assert "search" in parts
    assert choices.methods == ("rigl", "set")
    methods = {study.name: study.methods for study in choices.studies}
    assert methods["densities"] == methods["learning-rate"] == ("rigl",)
    assert methods["longer"] == ()
    choices, parts = chosen("--all", "--methods", "set")
    assert "search" not in parts
    assert "main" in parts
    with pytest.raises(ProtocolError, match="search: there is no such study; it must be one of"):
        chosen("--studies", "search", "--methods", "set")


def test_densities_of_equal_flops_depend_on_the_number_of_classes(tiny_preset):
    (study,) = [s for s in load_preset("smoke").choices.studies if s.name == "equal-flops"]
    protocol = load_preset(str(tiny_preset))
    choices = protocol.choices.model_copy(update={"studies": (study,)})
    found = {}
    for dataset in ("cifar10", "cifar100"):
        protocol = protocol.model_copy(update={"choices": choices, "dataset": dataset})
        (job,) = Part(protocol, ("equal-flops",), "", 100).jobs()
        flops = {}
        for init, density in (("erk", 0.2), ("uniform", job.spec.density)):
            model = full_model(protocol)
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
        found[dataset] = job.spec.density
    assert found["cifar10"] != found["cifar100"]


@pytest.mark.parametrize("preset", ["smoke", "cpu", "paper"])
def test_presets_have_something_for_every_table_and_figure(preset):
    first, *others = load_protocols(preset)
    choices = first.choices
    runs = [*expand(choices), *(run for study in choices.studies for run in expand(study))]
    assert {run.method for run in runs} == set(RECIPES) - {"granet", "mest"}
    assert {run.init for run in runs} == {None, "erk", "uniform"}
    assert len({run.density for run in runs if run.density is not None}) > 1
    assert {run.lr for run in runs} > {None}
    assert any(study.flops_of == "erk" for study in choices.studies)
    assert choices.search.trials >= 5
    # CIFAR-100 takes a GPU.
    assert [other.model.kind for other in others] == ([] if preset == "cpu" else ["resnet"])
    for other in others:
        assert {"dense", "rigl", "rigl-sg", "rigl-sm", "lottery"} <= set(other.choices.methods)
