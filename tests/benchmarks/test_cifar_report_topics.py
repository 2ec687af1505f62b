"""The report's sections about one question each: their numbers, by hand."""

import statistics

import pytest

from tests.benchmarks.report_records import record
from tests.benchmarks.test_cifar_report import all_rows, report_of, rows, text_of

SEARCH = {(0.2, 50): 0.70, (0.5, 900): 0.74, (0.4, 200): 0.75, (0.3, 600): 0.71, (0.6, 300): 0.72}


def searched(alpha, delta_t, seed, accuracy, **about):
    changed = {"alpha": alpha, "delta_t": delta_t}
    return record("rigl", "erk", 0.1, seed, accuracy, changed=changed, **about)


def search_lines():
    lines = [record("rigl", "erk", 0.1, seed, 0.73 + 0.01 * seed) for seed in (0, 1)]
    for (alpha, delta_t), accuracy in SEARCH.items():
        lines += [searched(alpha, delta_t, seed, accuracy + 0.02 * seed) for seed in (0, 1)]
    return lines


@pytest.fixture(scope="module")
def search_folder(tmp_path_factory):
    """The report of a search, with its figures."""
    folder = tmp_path_factory.mktemp("search")
    report_of(folder, search_lines())
    return folder


def test_optimum_stands_beside_the_protocols_own_setting_and_the_papers(search_folder):
    row = rows((search_folder / "report.md").read_text(), "Search of alpha and delta_t")["RigL"]
    assert row["trials"] == "5"
    assert row["reference"] == "(0.3, 100)"
    assert row["optimum"] == "(0.4, 200)"
    # .75 and .77 against .73 and .74 of the same seeds.
    gain = [2.0, 3.0]
    assert row["difference, points"] == f"+2.50 ± {statistics.stdev(gain):.2f}"
    assert row["paper: reference %"] == "92.4 ± 0.06"
    assert row["paper: optimum"] == "(0.416, 200)"
    assert row["paper: optimum %"] == "92.4 ± 0.23 [R]"


def test_runs_of_the_sweep_over_learning_rates_are_no_trials(tmp_path):
    lines = search_lines()
    for rate in (0.4, 0.2):
        # At the protocol's own rate only the settings of the masks differ.
        changed = {"alpha": 0.25, "delta_t": 20} | ({} if rate == 0.4 else {"lr": rate})
        lines += [record("rigl", "erk", 0.1, seed, 0.99, changed=changed) for seed in (0, 1)]
    report_of(tmp_path, lines)
    row = rows((tmp_path / "report.md").read_text(), "Search of alpha and delta_t")["RigL"]
    assert (row["trials"], row["optimum"]) == ("5", "(0.4, 200)")


def test_trials_are_listed_with_what_was_maximised_the_best_first(search_folder):
    table = all_rows((search_folder / "report.md").read_text(), "Trials of RigL (ERK) 0.1")
    # The validation accuracy of a made-up record is a point below that on the test images.
    assert [(row["delta_t"], row["validation %"][:5]) for row in table] == [
        ("200", "75.00"),
        ("900", "74.00"),
        ("300", "72.00"),
        ("600", "71.00"),
        ("50", "70.00"),
    ]


def test_search_is_drawn_as_a_contour(search_folder):
    assert (search_folder / "figures" / "cpu-search-rigl-erk-0.1.png").exists()
    contour = (search_folder / "figures" / "cpu-search-rigl-erk-0.1.svg").read_text()
    assert "REDUCED protocol 'cpu'" in contour
    assert "the protocol's own" in contour
    assert "optimum" in contour


def test_trials_of_a_search_are_in_no_other_table(search_folder):
    report = (search_folder / "report.md").read_text()
    assert rows(report, "Test accuracy")["RigL"]["seeds"] == "2"
    assert "| RigL | ERK | 0.1 | 2 | 73.50 ± 0.71 |" in report


def test_trial_that_has_not_all_its_seeds_yet_is_not_the_optimum():
    lines = [*search_lines(), searched(0.55, 100, 0, 0.99)]
    row = rows(text_of(lines), "Search of alpha and delta_t")["RigL"]
    assert row["trials"] == "6"
    assert row["optimum"] == "(0.4, 200)"


def test_setting_that_a_trial_shares_with_the_protocol_is_filled_in():
    line = record("rigl", "erk", 0.1, 0, 0.7, changed={"alpha": 0.45})
    row = rows(text_of([line]), "Search of alpha and delta_t")["RigL"]
    assert row["optimum"] == "(0.45, 100)"
    assert row["difference, points"] == "-"


def test_too_few_trials_for_a_contour_are_listed_without_one(tmp_path):
    report = report_of(tmp_path, [searched(0.2, 50, 0, 0.7), searched(0.3, 60, 0, 0.8)])
    assert "Trials of RigL (ERK) 0.1" in report
    assert not list((tmp_path / "figures").glob("*search*"))


def test_learning_rates_have_a_row_each_with_the_protocols_own_among_them():
    lines = [
        record("rigl", "erk", 0.1, 0, 0.70),
        record("rigl", "erk", 0.1, 0, 0.60, changed={"lr": 0.01}),
        record("rigl", "erk", 0.1, 0, 0.65, changed={"lr": 1.0}),
        record("set", "erk", 0.1, 0, 0.55, changed={"lr": 1.0}),
    ]
    columns = ("method", "lr", "test %", "each (seed)")
    found = [[row[name] for name in columns] for row in all_rows(text_of(lines), "Learning rate")]
    assert found == [
        ["RigL", "0.1", "70.00", "-"],
        ["RigL", "1", "65.00", "-5.00 (0)"],
        ["RigL", "0.01", "60.00", "-10.00 (0)"],
        ["SET", "1", "55.00", "-"],
    ]


def test_learning_rates_are_swept_for_each_pair_of_alpha_and_delta_t():
    masks = {"alpha": 0.4, "delta_t": 200}
    lines = [
        record("rigl", "erk", 0.1, 0, 0.60, changed={"lr": 0.01}),
        record("rigl", "erk", 0.1, 0, 0.70),
        record("rigl", "erk", 0.1, 0, 0.65, changed={"lr": 0.01, **masks}),
        record("rigl", "erk", 0.1, 0, 0.75, changed=masks),
    ]
    found = {
        (row["alpha"], row["lr"]): (row["test %"], row["each (seed)"])
        for row in all_rows(text_of(lines), "Learning rate")
    }
    assert found["0.400", "0.01"] == ("65.00", "-10.00 (0)")
    assert found["0.300", "0.01"] == ("60.00", "-10.00 (0)")
    assert found["0.400", "0.1"][0] == "75.00"
    assert "Search of alpha" not in text_of(lines)


def test_erk_and_uniform_are_compared_where_they_cost_as_much():
    lines = [
        record("rigl", "erk", 0.1, 0, 0.75, inference=200.0),
        record("rigl", "uniform", 0.1, 0, 0.68, inference=100.0),
        record("rigl", "uniform", 0.2, 0, 0.72, inference=202.0),
        record("set", "erk", 0.1, 0, 0.71, inference=200.0),
        record("set", "uniform", 0.1, 0, 0.66, inference=100.0),
    ]
    table = rows(text_of(lines), "ERK minus uniform, same method and inference FLOPs")
    # Within two percent of its FLOPs, RigL was run with uniform, and SET was not.
    assert list(table) == ["RigL"]
    assert table["RigL"]["minus"] == "RigL (uniform) 0.2"
    assert table["RigL"]["each (seed)"] == "+3.00 (0)"


def test_comparison_at_equal_flops_needs_both_methods_at_these_flops():
    lines = [
        record("rigl", "erk", 0.1, 0, 0.75, inference=200.0),
        record("rigl", "uniform", 0.1, 0, 0.68, inference=100.0),
    ]
    assert "inference FLOPs\n" not in text_of(lines)


def test_redistribution_stands_beside_its_own_table_of_the_paper_and_is_compared_with_rigl():
    lines = [record("rigl", "erk", 0.2, seed, 0.72 + 0.001 * seed) for seed in (0, 1)]
    lines += [record("rigl-sm", "erk", 0.2, seed, 0.73 + 0.001 * seed) for seed in (0, 1)]
    lines += [record("static", "erk", 0.2, seed, 0.70) for seed in (0, 1)]
    report = text_of(lines)
    table = rows(report, "Test accuracy")
    assert table["RigL-SM"]["paper %, full protocol"] == "93.0 ± 0.13 [R]"
    assert rows(report, "Minus RigL")["RigL-SM"]["each (seed)"] == "+1.00 (0), +1.00 (1)"


def test_runs_on_masks_of_other_runs_are_compared_with_those():
    lines = [record(name, "erk", 0.1, 0, 0.7) for name in ("pruning", "lottery", "static")]
    lines += [record("lottery", "erk", 0.1, 1, 0.72), record("pruning", "erk", 0.1, 1, 0.73)]
    report = text_of(lines)
    row = rows(report, "Minus the run that the masks are from")["Lottery"]
    assert row["minus"] == "Pruning (ERK) 0.1"
    assert row["each (seed)"] == "+0.00 (0), -1.00 (1)"
    assert "Lottery starts with the final masks of Pruning." in report


def test_longer_training_is_compared_with_the_usual_length():
    lines = [record("rigl", "erk", 0.1, 0, 0.72), record("rigl-2x", "erk", 0.1, 0, 0.74)]
    table = rows(text_of(lines), "Minus RigL")
    assert table["RigL 2x"]["each (seed)"] == "+2.00 (0)"


def test_erk_is_compared_with_uniform_at_the_same_density():
    lines = [record("set", "erk", 0.1, 0, 0.72), record("set", "uniform", 0.1, 0, 0.70)]
    table = rows(text_of(lines), "ERK minus uniform, same method and density")
    assert table["SET"]["each (seed)"] == "+2.00 (0)"


def test_cifar100_stands_beside_its_own_published_numbers():
    lines = [record("rigl-3x", "uniform", 0.2, 0, 0.7, dataset="cifar100")]
    report = text_of(lines)
    assert rows(report, "Test accuracy")["RigL 3x"]["paper %, full protocol"] == "74.2 ± 0.23 [R]"
    assert "ResNet-50" in report
