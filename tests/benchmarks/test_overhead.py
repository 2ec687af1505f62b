"""The overhead benchmark, as a user runs it: one command, then the results file and the report."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.overhead.cli import main

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "overhead" / "run.py"
OPTIMIZERS = ("sgd-foreach", "adamw-for-loop")
DENSITY = 0.1


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one quick run."""
    folder = tmp_path_factory.mktemp("overhead")
    options = ["--quick", "--training-step", "--device", "cpu", "--threads", "1"]
    options += ["--optimizers", *OPTIMIZERS, "--out", str(folder)]
    finished = subprocess.run(
        [sys.executable, str(SCRIPT), *options], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return folder


@pytest.fixture(scope="module")
def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def find(cases: list[dict], workload: str, optimizer: str) -> dict:
    (case,) = (
        case for case in cases if (case["workload"], case["optimizer"]) == (workload, optimizer)
    )
    return case["contenders"]


def test_results_say_what_was_measured_and_where(results: dict) -> None:
    assert results["quick"] is True
    assert results["config"]["densities"] == [DENSITY]
    assert results["environment"]["threads"] == 1
    assert results["environment"]["omp_wait_policy"] is not None
    assert results["environment"]["torch"]
    assert results["date"].endswith("+00:00")


@pytest.mark.parametrize("workload", ["wrn-22-2", "linears-25m"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_phase_of_every_contender_has_ordered_quartiles(
    results: dict, workload: str, optimizer: str
) -> None:
    contenders = find(results["steps"], workload, optimizer)
    config = results["config"]
    updates = config["rounds"] // config["update_every"]
    for name in ("compact", "masked"):
        times = contenders[name]
        for phase, count in (("step", config["rounds"] - updates), ("update", updates)):
            for unit in ("milliseconds", "ratio"):
                summary = times[phase][unit]
                assert summary["count"] == count
                assert 0 < summary["q1"] <= summary["median"] <= summary["q3"]
        assert times["update"]["ratio_to_reference"]["count"] == updates
        assert times["masking"]["ratio"]["count"] == config["rounds"] - updates
    assert contenders["plain"]["step"]["ratio"]["median"] == 1.0
    assert contenders["plain"]["update"]["milliseconds"] is None
    assert contenders["plain, again"]["step"]["milliseconds"]["count"] == config["rounds"]


def test_an_update_is_compared_with_adamw_whatever_the_optimizer(results: dict) -> None:
    assert "adamw-for-loop" in find(results["steps"], "linears-25m", "sgd-foreach")
    compact = find(results["steps"], "linears-25m", "adamw-for-loop")["compact"]["update"]
    assert compact["ratio_to_reference"] == compact["ratio"]


@pytest.mark.parametrize(("optimizer", "moments"), [("sgd-foreach", 1), ("adamw-for-loop", 2)])
def test_bytes_are_those_of_the_tensors_that_optimizers_must_hold(
    results: dict, optimizer: str, moments: int
) -> None:
    (case,) = (
        case
        for case in results["steps"]
        if (case["workload"], case["optimizer"]) == ("linears-25m", optimizer)
    )
    weights = case["parameters"]
    held = {name: times["bytes"] for name, times in case["contenders"].items()}
    # One float32 a weight and moment; AdamW counts steps besides.
    counters = 4 * case["tensors"] if moments == 2 else 0
    dense = 4 * moments * weights + counters
    assert held["plain"] == {"state": dense, "masks": 0, "index": 0}
    assert held["masked"]["state"] == dense
    live = pytest.approx(4 * moments * DENSITY * weights + counters, rel=1e-3)
    assert held["compact"]["state"] == live
    assert held["compact"]["state"] < 0.2 * held["plain"]["state"]
    for name in ("compact", "masked"):
        assert held[name]["masks"] == weights
        # What the wrapper finds live weights by is no more than another mask or two.
        assert 0 < held[name]["index"] < weights


def test_a_whole_training_step_is_its_parts(results: dict) -> None:
    assert {case["workload"] for case in results["training_steps"]} == {"wrn-22-2"}
    for optimizer in OPTIMIZERS:
        contenders = find(results["training_steps"], "wrn-22-2", optimizer)
        assert set(contenders) == {"plain", "plain, again", "compact", "masked"}
        for phases in contenders.values():
            whole = phases["whole"]["milliseconds"]["median"]
            assert 0 < phases["step"]["milliseconds"]["median"] < whole
            assert 0 < phases["passes"]["milliseconds"]["median"] <= whole


def test_the_report_is_made_from_the_results_alone(out: Path, tmp_path: Path) -> None:
    report = (out / "report.md").read_text()
    assert "quick run" in report
    for title in ("WRN-22-2, density 0.1", "whole training step", "Bytes between steps"):
        assert title in report
    (tmp_path / "results.json").write_bytes((out / "results.json").read_bytes())
    assert main(["--report-only", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "report.md").read_text() == report


def test_a_report_without_results_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--report-only", "--out", str(tmp_path)]) == 1
    assert "measure first" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [("--densities", "0"), ("--rounds", "0"), ("--device", "nonsense"), ("--workloads", "vgg")],
)
def test_bad_options_are_refused_by_name(
    arguments: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--out", str(tmp_path)])
    assert f"argument {arguments[0]}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
