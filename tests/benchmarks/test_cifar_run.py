import json
import re

import pytest
import torch

from benchmarks.cifar import cli, selecting
from benchmarks.cifar.images.sources import DataError
from benchmarks.cifar.protocols.choices import INITS
from benchmarks.cifar.protocols.methods import METHODS
from benchmarks.cifar.protocols.presets import PRESETS


def results(out):
    lines = (out / "results.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert len({record["key"] for record in records}) == len(records)
    return {record["label"]: record for record in records}


def test_finished_runs_are_skipped_and_the_rest_is_run(quick_preset, image_tree, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--preset", str(quick_preset), "--data-dir", str(image_tree), "--out", str(out)]
    assert cli.main([*options, "--methods", "static"]) == 0
    first = capsys.readouterr().out
    assert "1 runs, 0 of them finished, 1 to do" in first
    assert "REDUCED protocol 'quick on own images': WRN-10-1, own images at 3x32x32" in first
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
        (["--all", "--preset", "quick"], ["--preset", "'quick'", *PRESETS]),
        (["--methods", "rigle"], ["--methods", "'rigle'", *METHODS]),
        (["--inits", "random"], ["--inits", "'random'", *INITS]),
        (["--densities", "1.5"], ["--densities", "'1.5'", "above 0 and at most 1"]),
        (["--densities", "x"], ["--densities", "'x'"]),
        (["--seeds", "-1"], ["--seeds"]),
        (["--seeds", "a"], ["--seeds", "'a'", "integer from 0 on"]),
        (["--all", "--threads", "0"], ["--threads", "'0'", "at least 1"]),
        (["--all", "--workers", "0"], ["--workers", "'0'", "at least 1"]),
        (["--all", "--model", "vgg"], ["--model", "module:callable", "'vgg'"]),
        (["--all", "--set", "epochs"], ["--set", "SETTING=VALUE", "'epochs'"]),
        (["--all", "--preset", "missing.toml"], ["missing.toml"]),
        ([], ["--all", "--methods"]),
    ],
)
def test_unknown_values_are_refused_with_the_choices(arguments, named, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    for words in named:
        assert words in message


def test_help_documents_every_option(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    options = ["all", "preset", "methods", "inits", "densities", "seeds", "data-dir", "out"]
    options += ["protocols", "studies", "set", "model", "storage", "tensorboard", "workers"]
    options += ["cluster", "threads", "dry-run", "report-only"]
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


def test_mistyped_data_folder_is_not_replaced_by_the_digits(tiny_preset, tmp_path, capsys):
    (tmp_path / "file").touch()
    for name in ("nowhere", "file"):
        arguments = ["--preset", str(tiny_preset), "--all", "--data-dir", str(tmp_path / name)]
        assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 1
        message = capsys.readouterr().err
        assert f"--data-dir {tmp_path / name}: there is no such folder. Give a folder" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("gpu", "preset"), [(True, "paper"), (False, "cpu")])
def test_all_takes_the_preset_that_the_machine_can_run(gpu, preset, monkeypatch, tmp_path):
    taken = []

    def load_protocols(name, changes):
        taken.append(name)
        raise DataError("far enough")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(selecting, "load_protocols", load_protocols)
    assert cli.main(["--all", "--out", str(tmp_path)]) == 1
    assert taken == [preset]
