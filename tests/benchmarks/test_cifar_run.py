import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.cifar import cli, selecting
from benchmarks.cifar.choices import INITS
from benchmarks.cifar.methods import METHODS
from benchmarks.cifar.presets import PRESETS
from benchmarks.cifar.sources import DataError

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "cifar" / "run.py"
PATIENCE = 300.0


def start(preset, out, folder, *options):
    """Start the script as a user does, in an empty folder."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(SCRIPT), "--preset", str(preset), "--out", str(out)]
    return subprocess.Popen(
        [*command, "--threads", "1", *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*arguments):
    process = start(*arguments)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    return output


def kill_after_an_epoch(*arguments, out):
    process = start(*arguments)
    deadline = time.monotonic() + PATIENCE
    while not list((out / "checkpoints").glob("*.pt")):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == -signal.SIGKILL


def results(out):
    lines = (out / "results.jsonl").read_text().splitlines()
    return {record["label"]: record for record in map(json.loads, lines)}


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills a process by a POSIX signal")
@pytest.mark.parametrize("method", ["rigl", "set"])
def test_killed_run_resumes_to_the_same_bits(tiny_preset, tmp_path, method):
    folder, whole, broken = (tmp_path / name for name in ("cwd", "whole", "broken"))
    finish(tiny_preset, whole, folder, "--methods", method)
    kill_after_an_epoch(tiny_preset, broken, folder, "--methods", method, out=broken)
    assert not (broken / "results.jsonl").exists()
    output = finish(tiny_preset, broken, folder, "--methods", method)
    resumed = re.search(r"resumed at step (\d+) of 21", output)
    assert resumed is not None
    assert int(resumed[1]) in (7, 14)
    (expected,) = results(whole).values()
    (record,) = results(broken).values()
    for name in ("key", "curve", "accuracy", "weights_sha256", "density", "flops", "updates"):
        assert record[name] == expected[name]
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_finished_runs_are_skipped_and_the_rest_is_run(tiny_preset, tmp_path):
    out, folder = tmp_path / "out", tmp_path / "cwd"
    first = finish(tiny_preset, out, folder, "--methods", "dense")
    assert "1 runs, 0 of them finished, 1 to do" in first
    assert "REDUCED protocol 'tiny': WRN-10-1" in first
    dense = results(out)["dense-seed0"]
    second = finish(tiny_preset, out, folder, "--all")
    assert "2 runs, 1 of them finished, 1 to do" in second
    assert results(out).keys() == {"dense-seed0", "rigl-erk-0.2-seed0"}
    assert results(out)["dense-seed0"] == dense
    third = finish(tiny_preset, out, folder, "--all")
    assert "2 runs, 2 of them finished, 0 to do" in third
    assert len((out / "results.jsonl").read_text().splitlines()) == 2
    assert list((out / "checkpoints").iterdir()) == []
    assert {"torch", "sparseopt", "python", "processor", "git_commit"} <= dense[
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
