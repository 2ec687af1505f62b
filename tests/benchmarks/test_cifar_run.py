import json
import re
import sys

import pytest
import torch

from benchmarks.cifar import cli, options
from benchmarks.cifar.config import PRESETS
from benchmarks.cifar.data import DataError
from benchmarks.cifar.methods import RECIPES


def results(out):
    lines = (out / "results.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len({record["key"] for record in records}) == len(records)
    return {record["label"]: record for record in records}


def test_finished_runs_are_skipped_and_the_rest_is_run(quick_preset, cifar_tree, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--preset", str(quick_preset), "--data-dir", str(cifar_tree), "--out", str(out)]
    assert cli.main([*options, "--methods", "static"]) == 0
    first = capsys.readouterr().out
    assert "1 runs, 0 of them finished, 1 to do" in first
    assert "REDUCED protocol 'quick': WRN-10-1, CIFAR-10" in first
    static = results(out)["static-erk-0.2-seed0"]
    assert cli.main([*options, "--methods", "static", "rigl"]) == 0
    assert "2 runs, 1 of them finished, 1 to do" in capsys.readouterr().out
    assert results(out).keys() == {"static-erk-0.2-seed0", "rigl-erk-0.2-seed0"}
    assert results(out)["static-erk-0.2-seed0"] == static
    checkpoint = out / "checkpoints" / f"{static['key']}.pt"
    checkpoint.write_text("left by a process that was killed after it wrote its result")
    assert cli.main([*options, "--methods", "static", "rigl"]) == 0
    assert "2 runs, 2 of them finished, 0 to do" in capsys.readouterr().out
    assert len(results(out)) == 2
    assert list((out / "checkpoints").iterdir()) == []
    assert {"torch", "sparseopt", "python", "processor", "git_commit"} <= static[
        "environment"
    ].keys()
    assert str(tmp_path) not in (out / "results.jsonl").read_text()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--densities", "x"], ["--densities", "'x'"]),
        (["--seeds", "a"], ["--seeds", "'a'"]),
        (["--all", "--threads", "0"], ["--threads", "'0'", "at least 1"]),
        (["--all", "--workers", "0"], ["--workers", "'0'", "at least 1"]),
        (["--all", "--workers", "2", "--cluster", "local"], ["--cluster", "not allowed with"]),
        ([], ["--all", "--methods"]),
    ],
)
def test_options_without_a_meaning_are_refused(arguments, named, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    for words in named:
        assert words in message


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--all", "--preset", "smok"], ["smok", "did you mean 'smoke'", *PRESETS]),
        (["--all", "--preset", "missing.toml"], ["missing.toml: there is no such file"]),
        (["--methods", "rigle"], ["--methods", "did you mean 'rigl'", *RECIPES]),
        (["--inits", "random"], ["--inits", "'random'", "uniform", "er", "erk"]),
        (["--densities", "1.5"], ["--densities", "equal to 1, got 1.5"]),
        (["--seeds", "-1"], ["--seeds", "got -1"]),
        (["--all", "--set", "epochs"], ["--set", "SETTING=VALUE", "'epochs'"]),
        (["--all", "--import", "no_such_module"], ["--import no_such_module: No module"]),
    ],
)
def test_typos_are_answered_by_what_there_is(arguments, named, tmp_path, capsys):
    # If an option is given twice, the last value counts.
    base = ["--out", str(tmp_path), "--dry-run", "--preset", "smoke"]
    assert cli.main([*base, *arguments]) == 1
    message = capsys.readouterr().err
    for words in named:
        assert words in message


def test_missing_package_is_answered_by_how_to_install_it(
    quick_preset, cifar_tree, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "ray", None)
    options = ["--preset", str(quick_preset), "--data-dir", str(cifar_tree), "--all"]
    assert cli.main([*options, "--out", str(tmp_path / "out"), "--cluster", "local"]) == 1
    assert "pip install 'sparseopt[cluster]'" in capsys.readouterr().err


def test_help_documents_every_option(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    options = ["all", "preset", "methods", "inits", "densities", "seeds", "data-dir", "out"]
    options += ["studies", "set", "import", "workers", "cluster", "threads"]
    options += ["dry-run", "report-only"]
    for option in options:
        assert re.search(rf"^  --{option}\b", text, re.MULTILINE)


def test_missing_data_says_what_to_do_before_anything_is_written(tmp_path, capsys):
    arguments = ["--all", "--preset", "cpu", "--data-dir", str(tmp_path / "nowhere")]
    assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert "nowhere: there is no such folder" in message
    assert "class folders" in message
    assert "cifar-10-batches-py" in message
    assert list(tmp_path.iterdir()) == []


def test_data_folder_that_the_digits_do_not_need_is_not_ignored(tiny_preset, tmp_path, capsys):
    arguments = ["--preset", str(tiny_preset), "--all", "--data-dir", str(tmp_path / "nowhere")]
    assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 1
    assert "the digits need no folder; leave it out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


OWN = """
from dataclasses import dataclass
from sparseopt import SET, register_distribution, register_method

@register_method
@dataclass(frozen=True)
class Mine(SET):
    name = "mine"

@register_distribution("halved")
def halved(shapes, density):
    return {name: density / 2 for name in shapes}
"""


def test_own_method_and_init_are_trained_and_reported(
    quick_preset, cifar_tree, tmp_path, monkeypatch
):
    (tmp_path / "own_method.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    options = ["--preset", str(quick_preset), "--data-dir", str(cifar_tree), "--out", "out"]
    options += ["--import", "own_method", "--methods", "static", "mine", "--threads", "1"]
    assert cli.main([*options, "--inits", "erk", "halved"]) == 0
    found = results(tmp_path / "out")
    assert found.keys() == {
        f"{m}-{i}-0.2-seed0" for m in ("static", "mine") for i in ("erk", "halved")
    }
    assert found["mine-halved-0.2-seed0"]["density"] == pytest.approx(0.1, abs=1e-3)
    assert "| mine | halved | 0.2 |" in (tmp_path / "out" / "report.md").read_text()


SWEPT = """
from dataclasses import dataclass
import torch
from sparseopt import DropGrow, register_method

@register_method
@dataclass(frozen=True)
class Swept(DropGrow):
    name = "swept"
    decay: float = 0.9

    def initial_layer_state(self, layer):
        return {"size": torch.zeros_like(layer.weight)}

    def observe(self, layer, gradient, update):
        update.layer_state(layer)["size"].lerp_(gradient.abs(), 1 - self.decay)

    def drop_scores(self, layer, update):
        return layer.gather(update.layer_state(layer)["size"])

    def grow_scores(self, layer, update):
        return update.random_scores(layer)
"""


def test_sweep_over_settings_of_an_own_method_needs_only_the_method_file(
    quick_preset, cifar_tree, tmp_path, monkeypatch
):
    (tmp_path / "swept_method.py").write_text(SWEPT)
    monkeypatch.chdir(tmp_path)
    study = (
        'choices.studies=[{name="decays", methods=["swept"], inits=["erk"], densities=[0.2], '
        "seeds=[0], settings=[{decay=0.0}, {decay=0.5}]}]"
    )
    options = ["--preset", str(quick_preset), "--data-dir", str(cifar_tree), "--out", "out"]
    options += ["--import", "swept_method", "--studies", "decays", "--threads", "1"]
    assert cli.main([*options, "--set", study]) == 0
    found = results(tmp_path / "out")
    assert found.keys() == {f"swept-erk-0.2-decay{decay:g}-seed0" for decay in (0.0, 0.5)}
    assert found["swept-erk-0.2-decay0-seed0"]["run"]["settings"] == {"decay": 0.0}
    hashes = {record["weights_sha256"] for record in found.values()}
    assert len(hashes) == 2


@pytest.mark.parametrize(("gpu", "preset"), [(True, "paper"), (False, "cpu")])
def test_all_takes_the_preset_that_the_machine_can_run(gpu, preset, monkeypatch, tmp_path):
    taken = []

    def load_protocols(name, changes):
        taken.append(name)
        raise DataError("far enough")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(options, "load_protocols", load_protocols)
    assert cli.main(["--all", "--out", str(tmp_path)]) == 1
    assert taken == [preset]
