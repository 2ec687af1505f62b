"""Runs that drop entire channels and neurons, and the structures that they save for timing."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cifar.accounting import count
from benchmarks.cifar.config import load_preset
from benchmarks.cifar.grid import TIMING, RunSpec, expand
from benchmarks.cifar.models import build_model, full_model
from benchmarks.cifar.structure import Structure
from benchmarks.cifar.train import Run, weights_hash
from sparseopt import compact
from tests.benchmarks.conftest import end_after

METHODS = ("rigl-struct", "srigl")
PUBLISHED = ("small-dense", "rigl", "rigl-struct")
IMAGES = torch.zeros(2, 3, 32, 32)


def run_of(protocol, splits, method, density=0.2):
    return Run(protocol, RunSpec(method, "erk", density, 0), splits)


@pytest.mark.parametrize("method", METHODS)
def test_stopped_run_goes_on_to_the_weights_and_masks_of_one_that_was_not(
    method, protocol, splits, tmp_path, monkeypatch
):
    through = run_of(protocol, splits, method)
    through.finish(tmp_path / "through.pt")
    assert any(record.dropped for record in through.optimizer.history)
    end_after(4, run_of(protocol, splits, method), tmp_path / "cut.pt", monkeypatch)
    again = run_of(protocol, splits, method)
    assert again.resume(tmp_path / "cut.pt")
    again.finish(tmp_path / "cut.pt")
    assert weights_hash(again.model) == weights_hash(through.model)
    assert again.curve == through.curve


@pytest.mark.parametrize("method", METHODS)
def test_structure_on_disk_compacts_as_the_trained_model_does(method, protocol, splits, tmp_path):
    run = run_of(protocol, splits, method)
    run.finish(tmp_path / "checkpoint.pt")
    path = tmp_path / "structure.pt"
    Structure.of(run.model, run.optimizer).save(path)
    trained = compact(run.model, run.optimizer, example_inputs=IMAGES)
    torch.manual_seed(7)
    other = build_model(protocol, run.spec)
    remade = compact(other, Structure.load(path).put_into(other), example_inputs=IMAGES)
    assert shapes(remade.model) == shapes(trained.model)
    assert {n: int(m.sum()) for n, m in remade.masks.items()} == {
        n: int(m.sum()) for n, m in trained.masks.items() if m.dim() > 1
    }
    # A bit for each of 77,850 weights, and a little for each channel.
    assert path.stat().st_size < 40_000


def test_structure_of_another_network_is_refused_by_the_names_that_differ(
    protocol, splits, tmp_path
):
    structure = Structure.of(*_parts(run_of(protocol, splits, "srigl")))
    deeper = protocol.model.model_copy(update={"depth": 16})
    model = full_model(protocol.model_copy(update={"model": deeper}))
    with pytest.raises(RuntimeError, match=r"another network: .*groups"):
        structure.put_into(model)


def test_flops_recorded_of_dropped_channels_are_those_of_the_compacted_model(
    protocol, splits, tmp_path
):
    run = run_of(protocol, splits, "rigl-struct")
    run.finish(tmp_path / "checkpoint.pt")
    compacted = compact(run.model, run.optimizer, example_inputs=IMAGES).model
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        compacted.eval()(IMAGES[:1])
    biases = 10
    assert count(run)["flops"]["inference"] == counter.get_total_flops() + biases


@pytest.mark.parametrize("preset", ["cpu", "paper", "paper-cifar100"])
def test_presets_have_every_run_of_the_papers_structured_table_and_of_srigl(preset):
    choices = load_preset(preset).choices
    assert choices.timing.study == "structured"
    assert TIMING in choices.parts
    (study,) = [study for study in choices.studies if study.name == "structured"]
    specs = {dataclasses.replace(spec, seed=0) for spec in expand(study)}
    wanted = {RunSpec("small-dense", None, density, 0) for density in (0.1, 0.2)}
    wanted |= {
        RunSpec(method, init, density, 0)
        for method in ("rigl", *METHODS)
        for init in ("erk", "uniform")
        for density in (0.1, 0.2)
    }
    assert specs == wanted


def test_names_of_structured_results_stay():
    protocol = load_preset("cpu")
    keys = [RunSpec(m, "erk", 0.1, 0).key(protocol, data="c6623c884348") for m in METHODS]
    assert keys == ["rigl-struct-erk-0.1-seed0-f996118e36b7", "srigl-erk-0.1-seed0-65951f2ba16e"]


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _parts(run):
    return run.model, run.optimizer
