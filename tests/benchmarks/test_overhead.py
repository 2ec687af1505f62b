"""The overhead benchmark, as a user runs it: one command, then the results file and the reports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.common.files import claimed, lock_of, write_atomic
from benchmarks.overhead.cli import main
from benchmarks.overhead.results import Results

pytestmark = pytest.mark.slow

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "overhead"
OPTIMIZERS = ("sgd-foreach", "adamw-for-loop")
OURS = ("sparseopt, live", "sparseopt, masked")
MODEL = "mlp"
PRUNE = "torch.nn.utils.prune"
ABSENT = "SparseLab"
DENSITY = 0.1
SHORT = ["--device", "cpu", "--densities", str(DENSITY), "--rounds", "1", "--training-rounds", "1"]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one short run."""
    folder = tmp_path_factory.mktemp("overhead")
    options = [*SHORT, "--threads", "1", "--models", MODEL, "--out", str(folder)]
    options += ["--optimizers", *OPTIMIZERS, "--contenders", *OURS, PRUNE, ABSENT]
    finished = subprocess.run(
        [sys.executable, str(BENCHMARK / "run.py"), *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return folder


@pytest.fixture(scope="module")
def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


def find(results: dict, figures: str, workload: str, optimizer: str) -> dict:
    wanted = (figures, workload, optimizer)
    (entry,) = (
        entry
        for entry in results["entries"]
        if (entry["figures"], entry["workload"], entry["optimizer"]) == wanted
    )
    return entry


def test_every_entry_says_how_and_where_it_was_measured(results: dict) -> None:
    assert len(results["entries"]) == 3 * len(OPTIMIZERS)
    for entry in results["entries"]:
        assert entry["density"] == DENSITY
        about = entry["made_with"]
        assert about["threads"] == 1
        assert about["omp_wait_policy"] is not None
        assert about["torch"]
        assert about["date"].endswith("+00:00")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_phase_of_every_contender_has_ordered_quartiles(
    results: dict, optimizer: str
) -> None:
    entry = find(results, "steps", MODEL, optimizer)
    contenders, settings = entry["contenders"], entry["made_with"]
    updates = settings["rounds"] // settings["update_every"]
    for name in OURS:
        times = contenders[name]
        for phase, count in (("step", settings["rounds"] - updates), ("update", updates)):
            for unit in ("milliseconds", "ratio"):
                summary = times[phase][unit]
                assert summary["count"] == count
                assert 0 < summary["q1"] <= summary["median"] <= summary["q3"]
        assert times["update"]["ratio_to_reference"]["count"] == updates
        assert times["masking"]["ratio"]["count"] == settings["rounds"] - updates
    assert contenders["plain"]["step"]["ratio"]["median"] == 1.0
    assert contenders["plain"]["update"]["milliseconds"] is None
    assert contenders["plain, again"]["step"]["milliseconds"]["count"] == settings["rounds"]
    assert contenders[PRUNE]["update"]["milliseconds"] is None


def test_contenders_are_as_sparse_as_asked_and_move_their_masks_or_not(results: dict) -> None:
    for optimizer in OPTIMIZERS:
        contenders = find(results, "steps", MODEL, optimizer)["contenders"]
        for name in (*OURS, PRUNE):
            assert contenders[name]["density"] == pytest.approx(DENSITY, abs=1e-3)
        assert contenders["plain"]["density"] is None
        assert all(contenders[name]["moved"] > 0.1 for name in OURS)
        assert contenders[PRUNE]["moved"] == 0


def test_update_is_compared_with_adamw_whatever_the_optimizer(results: dict) -> None:
    assert "adamw-for-loop" in find(results, "steps", MODEL, "sgd-foreach")["contenders"]
    adamw = find(results, "steps", MODEL, "adamw-for-loop")["contenders"]
    update = adamw[OURS[0]]["update"]
    assert update["ratio_to_reference"] == update["ratio"]


@pytest.mark.parametrize(("optimizer", "moments"), [("sgd-foreach", 1), ("adamw-for-loop", 2)])
def test_bytes_are_those_of_the_tensors_that_optimizers_must_hold(
    results: dict, optimizer: str, moments: int
) -> None:
    entry = find(results, "steps", MODEL, optimizer)
    weights, sparse = entry["parameters"], entry["sparse_weights"]
    held = {name: figures["bytes"] for name, figures in entry["contenders"].items()}
    # One float32 a weight and moment; AdamW counts steps besides.
    counters = 4 * entry["tensors"] if moments == 2 else 0
    dense = 4 * moments * weights + counters
    for name in ("plain", *OURS, PRUNE):
        assert held[name]["weights"] == held[name]["gradients"] == 4 * weights
    assert {kind: held["plain"][kind] for kind in ("masks", "index", "other")} == {
        "masks": 0,
        "index": 0,
        "other": 0,
    }
    assert held["plain"]["state"] == held["sparseopt, masked"]["state"] == dense
    live = 4 * moments * (weights - sparse + DENSITY * sparse) + counters
    assert held["sparseopt, live"]["state"] == pytest.approx(live, rel=1e-3)
    # A float32 mask and the product of weight and mask, each of every weight.
    assert held[PRUNE]["masks"] == held[PRUNE]["other"] == 4 * sparse
    for name in OURS:
        finding = held[name]["masks"] + held[name]["index"] + held[name]["other"]
        assert sparse / 8 <= finding < 3 * sparse


def test_whole_training_step_is_its_parts(results: dict) -> None:
    for optimizer in OPTIMIZERS:
        contenders = find(results, "training", MODEL, optimizer)["contenders"]
        assert set(contenders) - {ABSENT} == {"plain", "plain, again", *OURS, PRUNE}
        for phases in contenders.values():
            whole = phases["whole"]["milliseconds"]["median"]
            assert 0 < phases["step"]["milliseconds"]["median"] < whole
            assert 0 < phases["passes"]["milliseconds"]["median"] <= whole


def test_library_that_is_not_installed_is_named_with_the_reason(results: dict, out: Path) -> None:
    missing = results["peers"][ABSENT]["absent"]
    report = (out / "report.md").read_text()
    assert "compiled for torch 2.4.0 only" in report
    if missing is None:
        pytest.skip(f"{ABSENT} is installed")
    assert find(results, "steps", MODEL, "sgd-foreach")["absent"][ABSENT] == missing
    assert f"- {ABSENT}: {missing}" in report


def test_profile_lists_operators_whose_shares_make_a_whole(results: dict, out: Path) -> None:
    entry = find(results, "profile", MODEL, "adamw-for-loop")
    assert set(entry["operators"]) == {"plain", OURS[0]}
    assert set(entry["operators"][OURS[0]]) == {"step", "update"}
    for phases in entry["operators"].values():
        for found in phases.values():
            rows = [*found["operators"], found["outside"]]
            assert 0.9 < sum(row["share"] for row in rows) <= 1.001
            assert all(0 <= row["share"] <= 1 and row["milliseconds"] >= 0 for row in rows)
    ours = {row["name"]: row["share"] for row in entry["operators"][OURS[0]]["step"]["operators"]}
    assert "aten::index_select" in ours
    assert f"`{max(ours, key=ours.get)}`" in (out / "report.md").read_text()


def test_report_is_made_from_the_results_alone(out: Path, tmp_path: Path) -> None:
    report = (out / "report.md").read_text()
    for title in ("17-64-64-6, density 0.1", "Full training step", "Bytes between steps"):
        assert title in report
    (tmp_path / "results.json").write_bytes((out / "results.json").read_bytes())
    assert main(["--report-only", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "report.md").read_text() == report


def test_committed_report_is_that_of_the_committed_results(tmp_path: Path) -> None:
    committed = BENCHMARK / "results"
    (tmp_path / "results.json").write_bytes((committed / "results.json").read_bytes())
    assert main(["--report-only", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "report.md").read_text() == (committed / "report.md").read_text()
    # Another version of matplotlib may draw the same figure in other words.
    assert (committed / "cost.svg").exists()


def test_results_with_the_former_name_of_a_contender_give_the_same_report(
    out: Path, tmp_path: Path
) -> None:
    text = (out / "results.json").read_text()
    assert "sparseopt, live" in text
    (tmp_path / "results.json").write_text(text.replace("sparseopt, live", "sparseopt, compact"))
    assert main(["--report-only", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "report.md").read_text() == (out / "report.md").read_text()


def test_measuring_a_part_again_replaces_it_and_leaves_the_others(tmp_path: Path) -> None:
    def measure(*options: str) -> list[dict]:
        arguments = [*SHORT, "--models", MODEL, "--contenders", OURS[0], "--figures", "steps"]
        assert main([*arguments, *options, "--out", str(tmp_path)]) == 0
        return json.loads((tmp_path / "results.json").read_text())["entries"]

    (adamw,) = measure("--optimizers", "adamw-for-loop")
    first, second = measure("--optimizers", "sgd-for-loop")
    assert [first["optimizer"], second] == ["sgd-for-loop", adamw]
    again, other = measure("--optimizers", "sgd-for-loop", "--update-every", "4")
    assert other == adamw
    assert again["optimizer"] == "sgd-for-loop"
    assert again["made_with"]["update_every"] == 4


def test_measurements_with_other_numbers_of_threads_stand_side_by_side(
    out: Path, tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    path.write_bytes((out / "results.json").read_bytes())
    one = Results(path).entries
    two = [{**entry, "made_with": {**entry["made_with"], "threads": 2}} for entry in one]
    for entry in (*two, *two):
        Results(path).put(entry, {})
    kept = Results(path).entries
    assert len(kept) == 2 * len(one)
    assert all(entry in kept for entry in (*one, *two))
    assert main(["--report-only", "--out", str(tmp_path)]) == 0
    lines = (tmp_path / "report.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| sgd-foreach | ")]
    # Steps, training and the profile have a row for each number of threads; bytes have one row.
    assert [line.startswith("| sgd-foreach | 1 |") for line in rows].count(True) > 2
    for row in rows:
        if row.startswith("| sgd-foreach | 1 |"):
            assert row.replace("| 1 |", "| 2 |", 1) in rows
    assert not any("sgd-foreach, sgd-foreach" in line for line in lines)


def test_two_processes_that_measure_at_once_lose_nothing_of_each_other(
    results: dict, tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    entries = results["entries"][:2]
    both = [Results(path), Results(path)]
    for name, entry, one in zip("ab", entries, both, strict=True):
        one.put(entry, {name: {"version": name, "absent": None}})
    assert Results(path).entries == both[1].entries == entries
    assert Results(path).peers.keys() == both[1].peers.keys() == {"a", "b"}


def test_no_other_process_can_change_results_while_they_are_written(
    results: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, taken = tmp_path / "results.json", []

    def write(written: Path, content: bytes) -> None:
        with claimed(Path(lock_of(path).lock_file)) as free:
            taken.append(not free)
        write_atomic(written, content)

    monkeypatch.setattr("benchmarks.overhead.results.write_atomic", write)
    Results(path).put(results["entries"][0], {})
    assert taken == [True]
    assert Results(path).entries == results["entries"][:1]


def test_report_without_results_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--report-only", "--out", str(tmp_path)]) == 1
    assert "measure first" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("--densities", "0"),
        ("--densities", "1"),
        ("--densities", "x"),
        ("--rounds", "0"),
        ("--device", "nonsense"),
        ("--models", "vgg"),
        ("--optimizers", "adamax"),
        ("--contenders", "nobody"),
    ],
)
def test_bad_options_are_refused_by_name(
    arguments: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--out", str(tmp_path)])
    message = capsys.readouterr().err
    assert f"argument {arguments[0]}" in message
    assert repr(arguments[1]) in message
    assert "_density" not in message
    assert not list(tmp_path.iterdir())
