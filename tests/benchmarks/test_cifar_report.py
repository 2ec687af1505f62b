import statistics

import pytest

from benchmarks.cifar.paper import Paper
from benchmarks.cifar.report import write_report
from benchmarks.cifar.results import ResultsError, append_result
from benchmarks.cifar.summary import Variant

DENSE_FLOPS = 1000.0
ACCURACIES = {
    ("dense", None, None): {0: 0.80, 1: 0.82},
    ("small-dense", None, 0.1): {0: 0.60},
    ("static", "erk", 0.1): {0: 0.700, 1: 0.730, 2: 0.710},
    ("rigl", "erk", 0.1): {0: 0.725, 1: 0.735, 3: 0.999},
}


def record(method, init, density, seed, accuracy, *, reduced=True, dataset="cifar10"):
    name = "cpu" if reduced else "paper"
    return {
        "key": f"{method}-{init}-{density}-{seed}-{name}",
        "run": {"method": method, "init": init, "density": density, "seed": seed},
        "protocol": {
            "name": name,
            "summary": "reduced a lot",
            "reduced": reduced,
            "label": "REDUCED protocol 'cpu'" if reduced else "paper protocol",
            "description": "WRN-10-2, 10 epochs",
            "settings": {"dataset": dataset},
        },
        "data": "abc",
        "accuracy": {"test": accuracy, "validation": accuracy - 0.01},
        "flops": {
            "inference": 200.0,
            "train": 600.0,
            "train_measured": 660.0,
            "dense_inference": DENSE_FLOPS,
            "dense_train": 3 * DENSE_FLOPS,
        },
        "parameters": {"total": 100, "live": 20},
        "updates": None if init is None else {"count": 7, "skipped": 0, "explored": 0.5},
        "density": density or 1.0,
        "seconds": 90.0,
        "environment": {
            "sparseopt": "1.2.3",
            "torch": "2.9",
            "numpy": "2",
            "python": "3.10",
            "git_commit": "c0ffee",
            "processor": "CPU",
            "threads": 2,
            "device": "cpu",
        },
    }


def write(path, **changes):
    for names, seeds in ACCURACIES.items():
        for seed, accuracy in seeds.items():
            append_result(path, record(*names, seed, accuracy, **changes))


def rows(report, heading):
    """The cells of the first table below a heading, by method."""
    table = report.split(f"### {heading}\n\n")[1].split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    return {line[0]: dict(zip(cells[0], line, strict=True)) for line in cells[2:]}


@pytest.fixture
def report(tmp_path):
    write(tmp_path / "results.jsonl")
    return write_report(tmp_path / "results.jsonl", tmp_path).read_text()


def test_accuracies_are_means_and_deviations_over_the_seeds(report):
    table = rows(report, "Test accuracy")
    values = [100 * value for value in ACCURACIES["static", "erk", 0.1].values()]
    expected = f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
    assert table["static"]["test %"] == expected
    assert table["static"]["seeds"] == "3"
    assert table["small-dense"]["test %"] == "60.00"
    assert table["dense"]["validation %"].startswith("80.00 ±")
    assert list(table) == ["dense", "small-dense", "static", "rigl"]


def test_flops_are_multiples_of_the_dense_networks(report):
    table = rows(report, "Test accuracy")
    assert table["rigl"]["train FLOPs"] == "0.200x"
    assert table["rigl"]["test FLOPs"] == "0.200x"
    assert rows(report, "Cost and exploration")["rigl"]["train FLOPs, measured"] == "0.220x"


def test_differences_are_paired_by_seed_and_only_where_both_ran(report):
    table = rows(report, "Paired differences from static")
    assert list(table) == ["rigl"]
    assert table["rigl"]["of each seed (seed)"] == "+2.50 (0), +0.50 (1)"
    assert table["rigl"]["mean, points"] == f"+1.50 ± {statistics.stdev([2.5, 0.5]):.2f}"


def test_published_numbers_stand_beside_ours_and_are_named_so(report):
    table = rows(report, "Test accuracy")
    published = "published % (full protocol)"
    assert table["rigl"][published] == "92.4 ± 0.06 [R]; 92.9 [G]"
    assert table["rigl"]["published FLOPs"] == "0.17, 0.17"
    assert table["dense"][published] == "93.4 ± 0.07 [R]"


def test_numbers_of_another_data_set_stand_alone(tmp_path):
    write(tmp_path / "results.jsonl", dataset="digits")
    report = write_report(tmp_path / "results.jsonl", tmp_path).read_text()
    assert "published" not in "".join(rows(report, "Test accuracy")["rigl"])


def test_reduced_numbers_are_called_reduced_in_report_and_figure(report, tmp_path):
    assert "## REDUCED protocol 'cpu'" in report
    assert "**These numbers are reduced** (reduced a lot)" in report
    assert "REDUCED protocol 'cpu'" in (tmp_path / "figures" / "cpu.svg").read_text()
    assert (tmp_path / "figures" / "cpu.png").read_bytes().startswith(b"\x89PNG")


def test_full_protocol_is_not_called_reduced(tmp_path):
    write(tmp_path / "results.jsonl", reduced=False)
    report = write_report(tmp_path / "results.jsonl", tmp_path).read_text()
    assert "REDUCED" not in report
    assert "numbers are reduced" not in report


def test_protocols_have_sections_of_their_own(tmp_path):
    write(tmp_path / "results.jsonl")
    write(tmp_path / "results.jsonl", reduced=False)
    report = write_report(tmp_path / "results.jsonl", tmp_path).read_text()
    assert [line for line in report.splitlines() if line.startswith("## ")] == [
        "## REDUCED protocol 'cpu'",
        "## paper protocol",
    ]


def test_same_results_give_the_same_files(report, tmp_path):
    names = ["report.md", "figures/cpu.svg", "figures/cpu.png"]
    before = [(tmp_path / name).read_bytes() for name in names]
    write_report(tmp_path / "results.jsonl", tmp_path)
    assert [(tmp_path / name).read_bytes() for name in names] == before


def test_report_names_versions_commit_and_hardware(report):
    assert "sparseopt 1.2.3, torch 2.9" in report
    assert "commit c0ffee; CPU, 2 threads" in report


def test_report_without_results_is_refused(tmp_path):
    with pytest.raises(ResultsError, match="holds no finished run"):
        write_report(tmp_path / "results.jsonl", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("variant", "accuracy", "flops"),
    [
        (("static", "uniform", 0.1), "89.1 ± 0.17 [R]", ""),
        (("small-dense", None, 0.2), "91.0 ± 0.07 [R]", "0.20, 0.20"),
        (("rigl", "uniform", 0.2), "92.6 ± 0.1 [R]; 92.9 ± 0.1 [S]", "0.20, 0.20"),
        (("set", "erk", 0.2), "92.9 ± 0.16 [R]", "0.35, 0.35"),
        (("pruning", "erk", 0.1), "92.6 ± 0.08 [R]; 93.3 [G]", "0.32, 0.13"),
        (("set", "erk", 0.3), "", ""),
    ],
)
def test_published_numbers_are_those_of_the_sources(variant, accuracy, flops):
    paper = Paper()
    assert paper.accuracy(Variant(*variant)) == accuracy
    assert paper.flops(Variant(*variant)) == flops
