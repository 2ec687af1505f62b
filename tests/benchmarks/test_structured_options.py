"""Wrong options of the benchmark of neurons and heads are refused, and so are results of others."""

import json

import pytest
import torch

from benchmarks.common.environment import describe_environment
from benchmarks.structured.cli import build_parser, main
from tests.benchmarks.test_structured import stopped_after_an_epoch

TINY = ["--width", "64", "--depth", "1", "--batch-size", "700", "--threads", "1", "--epochs", "2"]


def environment(device="cpu", threads=1):
    return {**describe_environment(torch.device("cpu")), "device": device, "threads": threads}


def write(folder, name, record):
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record))
    return path


def write_run(folder, method="dense", data="digits", device="cpu", **changed):
    """Write the result of a run that had the options of ``TINY``, or others."""
    asked = vars(build_parser().parse_args(["accuracy", *TINY]))
    numbers = {name: value for name, value in asked.items() if isinstance(value, int | float)}
    record = {
        "method": method,
        "seed": 0,
        "options": {**numbers, **changed},
        "data": data,
        "accuracy": 0.5,
        "epochs": [{"seconds": 1.0}],
        "parameters": 1,
        "environment": environment(device),
    }
    return write(folder, f"accuracy-{method}-0", record)


def write_times(folder, model="vit-192", batch=16, depth=1, rounds=1, threads=1):
    """Write the times of a model at density 0.5."""
    names = ("dense", "compacted", "by hand")
    record = {
        "model": model,
        "density": 0.5,
        "depth": depth,
        "batch": batch,
        "rounds": rounds,
        "training": {f"{name}, float32": 1.0 for name in names},
        "inference": {f"{name}, float32": 1.0 for name in names},
        "environment": environment(threads=threads),
    }
    return write(folder, f"time-{model}-0.5-cpu", record)


def write_inference(folder, seed=0, batch=64, rounds=1, device="cpu"):
    """Write the inference times of a seed."""
    record = {
        "seed": seed,
        "batch": batch,
        "rounds": rounds,
        "milliseconds": {"dense": 1.0},
        "environment": environment(device),
    }
    return write(folder, f"inference-{seed}", record)


def accuracy(folder, *options):
    return main(["accuracy", *TINY, "--seeds", "0", "--out", str(folder), *options])


def times(folder, *options):
    chosen = ["--models", "vit-192", "gpt-384", "--densities", "0.5", "--threads", "1"]
    return main(["time", *chosen, "--rounds", "1", "--depth", "1", "--out", str(folder), *options])


@pytest.mark.parametrize(
    ("options", "old", "new"),
    [
        (("--epochs", "3", "--lr", "1"), "epochs=2", "epochs=3"),
        (("--lr", "1"), "lr=0.001", "lr=1.0"),
        (("--weights", "0.2"), "weights=0.1", "weights=0.2"),
        (("--no-compacted",), "compacted=True", "compacted=False"),
        (("--data-dir", "."), "data=digits", "data=cifar10"),
    ],
)
@pytest.mark.parametrize("method", ["dense", "thinner"])
def test_training_beside_results_of_other_options_is_refused_at_once(
    tmp_path, capsys, options, old, new, method
):
    path = write_run(tmp_path)
    assert accuracy(tmp_path, "--methods", method, *options) == 1
    message = capsys.readouterr().err
    assert f"{path} was made with {old}, but now {new}: " in message
    assert "--out, or delete accuracy-dense-0.json" in message
    assert list(tmp_path.iterdir()) == [path]


def test_result_is_kept_if_only_options_differ_that_can_not_change_it(tmp_path):
    path = write_run(tmp_path, only_data=True)
    before = path.read_text()
    assert accuracy(tmp_path, "--methods", "dense", "--threads", "2") == 0
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--lr", "1"), "lr=0.001, but now lr=1.0"),
        (("--epochs", "1"), "epochs=2, but now epochs=1"),
    ],
)
def test_stopped_run_is_not_continued_with_other_options(
    tmp_path, monkeypatch, capsys, options, message
):
    with stopped_after_an_epoch(monkeypatch):
        accuracy(tmp_path, "--methods", "dense")
    checkpoint = tmp_path / "checkpoints" / "accuracy-dense-0"
    assert accuracy(tmp_path, "--methods", "dense", *options) == 1
    assert f"{checkpoint} was made with {message}: " in capsys.readouterr().err
    assert checkpoint.exists()
    assert not (tmp_path / "accuracy-dense-0.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--depth", "2"), "depth=1, but now depth=2"),
        (("--batch-size", "32"), "batch_size=16, but now batch_size=32"),
        (("--rounds", "2"), "rounds=1, but now rounds=2"),
        (("--threads", "2"), "threads=1, but now threads=2"),
    ],
)
@pytest.mark.parametrize(("model", "batch"), [("vit-192", 16), ("gpt-384", 4)])
def test_times_of_other_options_are_not_used_again(
    tmp_path, capsys, options, message, model, batch
):
    path = write_times(tmp_path, model, batch)
    assert times(tmp_path, *options) == 1
    assert f"{path} was made with {message}: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


def test_times_of_the_same_options_are_used_again(tmp_path):
    paths = [write_times(tmp_path), write_times(tmp_path, "gpt-384", batch=4)]
    # Rounds and batch of a model that is not asked for may differ: its row has them, or is as good.
    paths.append(write_times(tmp_path, "vit-384", batch=8, rounds=9))
    before = [path.read_text() for path in paths]
    assert times(tmp_path) == 0
    assert [path.read_text() for path in paths] == before


def test_inference_times_of_other_options_are_not_used_again(tmp_path, capsys):
    write_run(tmp_path)
    path = write_inference(tmp_path)
    options = ["--out", str(tmp_path), "--threads", "1", "--rounds", "1"]
    assert main(["inference", *options]) == 0
    assert main(["inference", *options, "--batch-size", "8"]) == 1
    message = f"{path} was made with batch_size=64, but now batch_size=8: "
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("write_two", "differing"),
    [
        (lambda to: (write_run(to), write_run(to, "rigl", epochs=3)), ("epochs=2", "epochs=3")),
        (
            lambda to: (write_run(to), write_run(to, "rigl", data="cifar10")),
            ("data=digits", "data=cifar10"),
        ),
        (
            lambda to: (write_run(to), write_run(to, "rigl", device="NVIDIA H200")),
            ("device=cpu", "device=gpu"),
        ),
        (
            lambda to: (write_times(to, "gpt-384", 4), write_times(to, depth=2)),
            ("depth=1", "depth=2"),
        ),
    ],
)
def test_report_refuses_results_of_different_options(tmp_path, capsys, write_two, differing):
    (one, other), (old, new) = write_two(tmp_path), differing
    assert main(["report", "--out", str(tmp_path)]) == 1
    message = f"{one} was made with {old}, but {other} with {new}: "
    assert message in capsys.readouterr().err
    assert not (tmp_path / "report.md").exists()


def test_report_refuses_inference_times_of_different_options(tmp_path, capsys):
    write_run(tmp_path)
    write_inference(tmp_path, 0)
    write_inference(tmp_path, 1, batch=8)
    assert main(["report", "--out", str(tmp_path)]) == 1
    assert "inference-1.json with batch_size=8: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "option", "value", "right"),
    [
        ("report", "--threads", "0", "a whole number of at least 1"),
        ("accuracy", "--epochs", "0", "a whole number of at least 1"),
        ("accuracy", "--seeds", "-1", "a whole number of at least 0"),
        ("accuracy", "--density", "3", "above 0 and at most 1"),
        ("accuracy", "--weights", "0", "above 0 and at most 1"),
        ("accuracy", "--lr", "-1", "a finite number above 0"),
        ("accuracy", "--width", "100", "a multiple of 64"),
        ("accuracy", "--patch", "5", "choose from"),
        ("accuracy", "--batch-size", "5000", "the number of training images"),
        ("accuracy", "--data-dir", "absent", "there is no such folder"),
        ("accuracy", "--device", "abacus", "can't be used"),
        ("inference", "--rounds", "0", "a whole number of at least 1"),
        ("time", "--batch-size", "2", "a multiple of 4"),
        ("time", "--densities", "1.5", "above 0 and at most 1"),
    ],
)
def test_wrong_argument_is_refused_with_its_name_its_value_and_what_is_right(
    tmp_path, capsys, command, option, value, right
):
    threads = () if option == "--threads" else ("--threads", "1")
    with pytest.raises(SystemExit) as caught:
        main([command, *threads, "--out", str(tmp_path), option, value])
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert option in message
    assert value in message
    assert right in message
    assert not list(tmp_path.glob("*.*"))
