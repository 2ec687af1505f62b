import json
import math
import re
import statistics
from pathlib import Path

import pytest

from benchmarks.cifar.records import ResultsError, append_result
from benchmarks.cifar.report import write_report
from benchmarks.cifar.report.figures import against_flops
from benchmarks.cifar.report.results import Variant, group_by_protocol
from benchmarks.cifar.report.writing import Figures, group_lines
from tests.benchmarks.report_records import record, with_masks

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "cifar" / "results"
ACCURACIES = {
    ("dense", None, None): {0: 0.80, 1: 0.82},
    ("small-dense", None, 0.1): {0: 0.60},
    ("static", "erk", 0.1): {0: 0.700, 1: 0.730, 2: 0.710},
    ("rigl", "erk", 0.1): {0: 0.725, 1: 0.735, 3: 0.999},
}


def report_of(folder, lines):
    for line in lines:
        append_result(folder / "results.jsonl", line)
    return write_report(folder / "results.jsonl", folder).read_text()


class NoFigures(Figures):
    """Draws figures without writing them, because writing takes most of a report's time."""

    def show(self, name, caption, figure):
        return []


def text_of(lines, measured=()):
    """The report's text, without figures."""
    (group,) = group_by_protocol(lines)
    figures = NoFigures(group, None, set())
    return "\n".join(group_lines(group, figures, measured=measured))


def lines_of_accuracies(**changes):
    return [
        record(*names, seed, accuracy, **changes)
        for names, seeds in ACCURACIES.items()
        for seed, accuracy in seeds.items()
    ]


def all_rows(report, heading):
    """The cells of each row of the first table below a heading."""
    below = re.split(rf"^#+ {re.escape(heading)}\n", report, flags=re.MULTILINE)[1]
    lines = below[below.index("|") :].split("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(cells[0], line, strict=True)) for line in cells[2:]]


def rows(report, heading):
    """The same by method, or by another first column."""
    return {next(iter(row.values())): row for row in all_rows(report, heading)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A report, its figures and its results."""
    folder = tmp_path_factory.mktemp("report")
    report_of(folder, lines_of_accuracies())
    return folder


@pytest.fixture(scope="module")
def report(folder):
    return (folder / "report.md").read_text()


def test_accuracies_are_means_and_deviations_over_the_seeds(report):
    table = rows(report, "Test accuracy")
    values = [100 * value for value in ACCURACIES["static", "erk", 0.1].values()]
    expected = f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"
    assert table["Static"]["test %"] == expected
    assert table["Static"]["seeds"] == "3"
    assert table["Small-Dense"]["test %"] == "60.00"
    assert rows(report, "Cost and exploration")["Dense"]["validation %"].startswith("80.00 ±")
    assert list(table) == ["Dense", "Small-Dense", "Static", "RigL"]


def test_flops_are_multiples_of_the_dense_networks(report):
    table = rows(report, "Test accuracy")
    assert table["RigL"]["train FLOPs"] == "0.200x"
    assert table["RigL"]["test FLOPs"] == "0.200x"
    assert rows(report, "Cost and exploration")["RigL"]["measured"] == "0.220x"


def test_short_protocol_says_how_long_a_full_run_would_take():
    lines = lines_of_accuracies()
    for line in lines:
        line["protocol"] |= {"full_steps": 88_000}
    text = text_of(lines)
    assert rows(text, "Cost and exploration")["RigL"]["seconds a step"] == "1.5"
    # 88,000 steps of 90 s / 60 are 132,000 s.
    assert "with evaluation): Dense 36 h 40 min, " in text
    assert "88,000 steps of a full run on this machine" in text
    assert "Projected" not in text_of(lines_of_accuracies())


def test_projection_is_longer_for_longer_training_and_names_the_init():
    lines = [record("rigl", "uniform", 0.1, 0, 0.8), record("rigl-2x", "erk", 0.1, 0, 0.9)]
    for line in lines:
        line["protocol"] |= {"full_steps": 88_000}
    text = text_of(lines)
    assert "RigL (uniform) 0.1 36 h 40 min" in text
    assert "RigL 2x (ERK) 0.1 3 days 1 h" in text


def test_full_run_is_projected_from_cpu_time_of_one_thread():
    """Wall time has the work of others in it, and CPU time of several threads is not their time."""
    lines = lines_of_accuracies()
    for line in lines:
        line["protocol"] |= {"full_steps": 88_000}
        line["cpu"] = {"seconds": 30.0, "quiet_ms_a_step": 400.0}
        threads = 1 if line["run"]["method"] == "dense" else 2
        line["environment"] = {**line["environment"], "threads": threads}
    text = text_of(lines)
    # 88,000 steps of 30 s / 60 are 44,000 s.
    assert "Dense 12 h 13 min, " in text
    assert "RigL (ERK) 0.1 36 h 40 min" in text


def test_times_of_different_processors_are_never_compared():
    lines = lines_of_accuracies()
    for line in lines:
        is_dense = line["run"]["method"] == "dense"
        line["cpu"] = {"seconds": 1.0, "quiet_ms_a_step": 500.0 if is_dense else 200.0}
    (rigl,) = (
        line for line in lines if line["run"]["method"] == "rigl" and line["run"]["seed"] == 0
    )
    rigl["cpu"]["quiet_ms_a_step"] = 800.0
    rigl["seconds"] = 9000.0
    rigl["environment"] = {**rigl["environment"], "processor": "a slow one"}
    row = rows(text_of(lines), "Cost and exploration")["RigL"]
    assert (row["minutes a run"], row["CPU ms a step, quiet"]) == ("1.5", "200")
    (group,) = group_by_protocol(lines)
    assert group.training_time(Variant.of(rigl["run"])) == pytest.approx(0.4)
    assert "Times are means over the runs on " in text_of(lines)
    assert "a slow one" not in text_of(lines).partition("## Made with")[0]


def test_training_time_is_told_where_runs_recorded_their_cpu_time():
    lines = lines_of_accuracies()
    for line in lines:
        is_dense = line["run"]["method"] == "dense"
        line["cpu"] = {"seconds": 1.0, "quiet_ms_a_step": 500.0 if is_dense else 200.0}
    text = text_of(lines)
    assert rows(text, "Cost and exploration")["RigL"]["CPU ms a step, quiet"] == "200"
    (group,) = group_by_protocol(lines)
    rigl = next(one for one in group.variants if one.method == "rigl")
    assert group.training_time(rigl) == pytest.approx(0.4)
    axes = [axes.get_xlabel() for axes in against_flops(group).axes]
    assert "measured training time, multiple of dense" in axes
    assert "quiet" not in text_of(lines_of_accuracies())


def test_longer_training_and_the_run_that_masks_came_from_count_as_training_flops():
    lines = [
        record("rigl-2x", "erk", 0.1, 0, 0.7),
        record("rigl", "erk", 0.1, 0, 0.7),
        record("pruning", "erk", 0.1, 0, 0.7, inference=320.0),
        record("lottery", "erk", 0.1, 0, 0.7, inference=130.0),
    ]
    table = rows(text_of(lines), "Test accuracy")
    assert table["RigL 2x"]["train FLOPs"] == "0.400x"
    assert table["RigL 2x"]["test FLOPs"] == "0.200x"
    # As in the paper: .32 of the pruning and .13 of the ticket make .45.
    assert table["Lottery"]["train FLOPs"] == "0.450x"


def test_method_that_was_imported_for_its_run_is_counted_as_it_was_trained():
    recipe = {"length": 2, "masks_from": "pruning"}
    lines = [
        record("mine", "erk", 0.1, 0, 0.7, inference=130.0) | {"recipe": recipe},
        record("pruning", "erk", 0.1, 0, 0.6, inference=320.0),
    ]
    for line in lines:
        line["cpu"] = {"seconds": 1.0, "quiet_ms_a_step": 500.0}
    text = text_of(lines)
    # Twice .13 of the method and .32 of the run that its masks are from.
    assert rows(text, "Test accuracy")["mine"]["train FLOPs"] == "0.580x"
    assert "mine" in rows(text, "Minus the run that the masks are from")
    (group,) = group_by_protocol(lines)
    times = {variant.method: group.cpu_minutes(variant) for variant in group.variants}
    assert times["mine"] == pytest.approx(2 * times["pruning"])


def test_training_flops_of_a_ticket_are_open_until_its_origin_is_there():
    table = rows(text_of([record("lottery", "erk", 0.1, 0, 0.7)]), "Test accuracy")
    assert table["Lottery"]["train FLOPs"] == "-"


def test_differences_are_paired_by_seed_and_only_where_both_ran(report):
    table = rows(report, "Minus Static")
    assert list(table) == ["RigL"]
    assert table["RigL"]["each (seed)"] == "+2.50 (0), +0.50 (1)"
    expected = f"+1.50 ± {statistics.stdev([2.5, 0.5]):.2f}"
    assert table["RigL"]["difference, points"] == expected


def test_order_is_claimed_beyond_the_spread_and_left_open_within():
    # Two variants, four seeds, so three degrees of freedom, where Student's t at 97.5 % is 3.182.
    # The differences deviate by .1 and more, the runs by that over the square root of two.
    differences = [0.010, 0.012, 0.010, 0.012]
    static = [0.70, 0.72, 0.69, 0.71]
    half_width = 3.182 * statistics.stdev(differences) / math.sqrt(4)
    for shift, order in ((0.0, "ahead"), (-0.0105, "open")):
        lines = [record("static", "erk", 0.1, seed, value) for seed, value in enumerate(static)]
        lines += [
            record("rigl", "erk", 0.1, seed, value + difference + shift)
            for seed, (value, difference) in enumerate(zip(static, differences, strict=True))
        ]
        row = rows(text_of(lines), "Minus Static")["RigL"]
        assert row["spread"] == f"{100 * half_width:.2f}"
        assert row["order"] == order


def test_single_seed_claims_no_order():
    lines = [record("static", "erk", 0.1, 0, 0.1), record("rigl", "erk", 0.1, 0, 0.9)]
    text = text_of(lines)
    assert rows(text, "Minus Static")["RigL"]["order"] == "open"
    assert rows(text, "Minus Static")["RigL"]["spread"] == "-"
    assert "have a single seed, so there is no deviation" in text


def test_difference_of_one_seed_is_open_where_other_methods_have_several():
    lines = [record("static", "erk", 0.1, seed, 0.1 + 0.001 * seed) for seed in range(3)]
    lines += [record("set", "erk", 0.1, seed, 0.5 + 0.001 * seed) for seed in range(3)]
    lines += [record("rigl", "erk", 0.1, 0, 0.9)]
    table = rows(text_of(lines), "Minus Static")
    assert table["SET"]["order"] == "ahead"
    assert table["RigL"]["order"] == "open"
    assert float(table["RigL"]["difference, points"]) > float(table["RigL"]["spread"])


def test_repeated_runs_stand_beside_the_first(tmp_path):
    lines = lines_of_accuracies()
    assert "Repeated runs" not in report_of(tmp_path, lines)
    first = next(one for one in lines if one["run"]["method"] == "rigl")
    other = record("rigl", "erk", 0.3, 0, 0.9)
    again = {**first, "accuracy": {"test": first["accuracy"]["test"] - 0.0018}}
    again["environment"] = {**first["environment"], "processor": "Other CPU"}
    for line in (again, other):
        append_result(tmp_path / "repeats.jsonl", line)
    (row,) = all_rows(report_of(tmp_path, []), "Repeated runs")
    accuracy = 100 * first["accuracy"]["test"]
    assert row["method"] == "RigL"
    assert row["seed"] == str(first["run"]["seed"])
    assert row["test %"] == f"{accuracy:.2f}"
    assert row["repeated, test %"] == f"{accuracy - 0.18:.2f}"
    assert row["repeated on"] == "Other CPU"
    assert row["difference, points"] == "-0.18"


def test_published_numbers_stand_beside_ours_with_their_difference():
    row = rows(text_of(lines_of_accuracies(reduced=False)), "Test accuracy")["RigL"]
    ours = statistics.mean(100 * value for value in ACCURACIES["rigl", "erk", 0.1].values())
    assert row["paper %"] == "92.4 ± 0.06 [R]; 92.9 [G]"
    assert row["difference"] == f"{ours - 92.4:+.2f}; {ours - 92.9:+.2f}"


def test_reduced_numbers_have_no_difference_from_published_numbers(report):
    table = rows(report, "Test accuracy")
    assert table["RigL"]["paper %, full protocol"] == "92.4 ± 0.06 [R]; 92.9 [G]"
    assert table["Dense"]["paper %, full protocol"] == "93.4 ± 0.07 [R]"
    assert not {"difference", "inside the spread"} & table["RigL"].keys()
    assert "A difference is our number minus the published number" not in report


def test_difference_is_inside_the_spread_where_the_bands_of_one_deviation_overlap():
    # Published: RigL 92.4 ± 0.06, SET 92.2 ± 0.04, SNFS 92.2 ± 0.2. Ours deviate by .14.
    lines = [
        record(method, "erk", 0.1, seed, accuracy + 0.001 * (2 * seed - 1), reduced=False)
        for seed in (0, 1)
        for method, accuracy in (("rigl", 0.9259), ("set", 0.9239), ("snfs", 0.9253))
    ]
    lines.append(record("pruning", "erk", 0.1, 0, 0.926, reduced=False))
    table = rows(text_of(lines), "Test accuracy")
    assert table["RigL"]["inside the spread"] == "yes; -"
    assert table["SET"]["inside the spread"] == "no"
    assert table["SNFS"]["inside the spread"] == "yes"
    assert table["Pruning"]["inside the spread"] == "-; -"


def test_order_of_the_methods_is_set_beside_the_papers():
    # In the paper at density .1 with ERK: Pruning 92.6, RigL 92.4, SET 92.2, Small-Dense 89.0.
    ours = {"pruning": 0.78, "rigl": 0.72, "set": 0.73, "small-dense": 0.70}
    noise = (0.0, 0.0004, 0.0002)
    lines = [record("dense", None, None, seed, 0.84) for seed in range(3)]
    lines += [
        record(method, None if method == "small-dense" else "erk", 0.1, seed, accuracy + wobble)
        for method, accuracy in ours.items()
        for seed, wobble in enumerate(noise)
    ]
    text = text_of(lines)
    table = rows(text, "Density 0.1")
    assert [(row["place in the paper"], row["place here"]) for row in table.values()] == [
        ("1", "1"),
        ("2", "3"),
        ("3", "2"),
        ("4", "4"),
    ]
    assert table["Pruning"]["points from Dense in the paper"] == "-0.8"
    assert table["Pruning"]["points from Dense here"] == "-5.98"
    assert "In the other order here: SET (ERK) above RigL (ERK)." in text
    # Five pairs agree and one doesn't: (5 - 1) / 6.
    assert "Kendall's tau of the two orders is 0.67." in text


def test_seeds_that_one_method_has_alone_do_not_move_its_place():
    ours = {"rigl": 0.73, "set": 0.72, "pruning": 0.78}
    lines = [
        record(method, "erk", 0.1, seed, accuracy + 0.001 * seed)
        for method, accuracy in ours.items()
        for seed in (0, 1)
    ]
    alone = [record("rigl", "erk", 0.1, seed, 0.5) for seed in (2, 3)]
    alone += [record("dense", None, None, seed, 0.9) for seed in (0, 1)]
    text = text_of([*lines, *alone])
    table = rows(text, "Density 0.1")
    assert [row["place here"] for row in table.values()] == ["1", "2", "3"]
    # Seed by seed: .73 - .9 and .731 - .9.
    assert table["RigL"]["points from Dense here"] == "-16.95"
    assert "Kendall's tau of the two orders is 1.00." in text


def test_number_that_was_published_without_an_init_has_one_place():
    # The paper has one number for Pruning, 92.6; SNFS has 92.2 with ERK.
    ours = {("pruning", "erk"): 0.70, ("pruning", "uniform"): 0.78, ("snfs", "erk"): 0.74}
    ours |= {("rigl", "erk"): 0.76}
    text = text_of([record(*one, 0.1, 0, accuracy) for one, accuracy in ours.items()])
    table = all_rows(text, "Density 0.1")
    placed = [(row["method"], row["init"], row["place here"]) for row in table]
    assert placed == [("Pruning", "uniform", "1"), ("RigL", "ERK", "2"), ("SNFS", "ERK", "3")]
    assert "Kendall's tau of the two orders is 1.00." in text


def test_methods_without_a_common_seed_have_no_places():
    methods = ("rigl", "set", "pruning")
    text = text_of([record(method, "erk", 0.1, seed, 0.7) for seed, method in enumerate(methods)])
    assert [row["place here"] for row in rows(text, "Density 0.1").values()] == ["-", "-", "-"]
    assert "Kendall" not in text


def test_numbers_of_another_data_set_stand_alone():
    report = text_of(lines_of_accuracies(dataset="digits"))
    assert "paper" not in report.lower()
    assert "difference" not in rows(report, "Test accuracy")["RigL"]


def test_reduced_numbers_are_called_reduced_in_report_and_every_figure(report, folder):
    assert "## REDUCED protocol 'cpu'" in report
    assert "**These numbers are reduced** (reduced a lot)" in report
    figures = sorted((folder / "figures").glob("*.svg"))
    assert len(figures) == len(sorted((folder / "figures").glob("*.png"))) > 2
    for figure in figures:
        assert "REDUCED protocol 'cpu'" in figure.read_text()
        assert "WRN-10-2, 10 epochs" in figure.read_text()
    for path in (folder / "figures").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
        assert f"(figures/{path.name})" in report


def test_full_protocol_is_not_called_reduced():
    report = text_of(lines_of_accuracies(reduced=False))
    assert "REDUCED" not in report
    assert "numbers are reduced" not in report


def test_protocols_have_sections_and_figures_of_their_own(tmp_path):
    lines = lines_of_accuracies()[:2] + lines_of_accuracies(reduced=False)[:2]
    report = report_of(tmp_path, lines)
    assert [line for line in report.splitlines() if line.startswith("## ")] == [
        "## REDUCED protocol 'cpu'",
        "## paper protocol",
        "## Sources of the published numbers",
    ]
    parts = re.split("^## ", report, flags=re.MULTILINE)[1:3]
    for part, name in zip(parts, ("cpu", "paper"), strict=True):
        assert rows("## " + part, "Test accuracy")["Dense"]["seeds"] == "2"
        assert set(re.findall(r"\(figures/(\w+)-", part)) == {name}


def test_same_name_with_other_settings_is_another_protocol(tmp_path):
    lines = [record("dense", None, None, 0, 0.8), record("dense", None, None, 1, 0.9)]
    lines[1]["protocol"]["settings"]["optimizer"] = {"lr": 0.4}
    report = report_of(tmp_path, lines)
    assert report.count("## REDUCED protocol 'cpu'") == 2
    assert "80.00" in report
    assert "90.00" in report
    assert "(figures/cpu-2-by-method.png)" in report


def test_protocols_of_the_same_name_are_told_apart_by_the_settings_that_differ():
    lines = [record("dense", None, None, 0, 0.8) for _ in range(4)]
    lines[1]["protocol"]["settings"]["optimizer"] = {"lr": 0.1, "weight_decay": 0.01}
    lines[2]["protocol"]["settings"]["training"] = {"epochs": 20}
    lines[3]["data"] = "other images"
    other = record("dense", None, None, 0, 0.8, reduced=False)
    *groups, last = group_by_protocol([*lines, other])
    usual = {"training.epochs": 10, "optimizer.weight_decay": "default", "data": "abc"}
    changes = ({}, {"optimizer.weight_decay": 0.01}, {"training.epochs": 20})
    for group, change in zip(groups, (*changes, {"data": "other images"}), strict=True):
        told = sorted(f"{name}={value}" for name, value in (usual | change).items())
        label, _, words = group.protocol["label"].partition(" (")
        assert label == "REDUCED protocol 'cpu'"
        assert sorted(words.removesuffix(")").split(", ")) == told
        assert group.protocol["description"] == f"WRN-10-2, 10 epochs, {words[:-1]}"
    assert last.protocol == other["protocol"]


def test_runs_with_the_same_settings_and_data_are_one_protocol_whatever_its_name():
    lines = [record("rigl", "erk", 0.1, seed, 0.7) for seed in (0, 1)]
    lines[0]["protocol"]["name"] = "cpu with b=1, a=2"
    lines[1]["protocol"]["name"] = "cpu with a=2, b=1"
    (group,) = group_by_protocol(lines)
    assert list(group.test.columns) == [0, 1]
    assert group.protocol == lines[1]["protocol"]


def test_figures_of_a_protocol_changed_on_the_command_line_are_found(tmp_path):
    line = record("dense", None, None, 0, 0.8)
    line["protocol"]["name"] = "cpu with model.kind=own/net:make, training.epochs=3"
    report = report_of(tmp_path, [line])
    (name, *_) = re.findall(r"\(figures/([^)]*)\)", report)
    assert name == "cpu-with-model.kind-own-net-make-training.epochs-3-by-method.png"
    assert (tmp_path / "figures" / name).exists()


@pytest.mark.parametrize(
    "committed", sorted(path.parent for path in COMMITTED.rglob("report.md")), ids=lambda p: p.name
)
def test_committed_reports_are_made_from_the_committed_results(tmp_path, monkeypatch, committed):
    monkeypatch.setattr("benchmarks.cifar.report.writing.save", lambda figure, path: None)
    report = write_report(committed / "results.jsonl", tmp_path)
    assert report.read_text() == (committed / "report.md").read_text()


def test_same_results_give_the_same_files(report, folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    before = [path.read_bytes() for path in files]
    write_report(folder / "results.jsonl", folder)
    assert [path.read_bytes() for path in files] == before


def test_settings_of_a_method_and_any_method_and_init_have_rows_of_their_own(tmp_path):
    lines = [record("static", "erk", 0.1, seed, 0.7 + 0.001 * seed) for seed in (0, 1)]
    for number, initial in enumerate((0.5, 0.8)):
        for seed in (0, 1):
            line = record("granet", "erk", 0.1, seed, 0.72 + 0.01 * number + 0.001 * seed)
            line["run"]["settings"] = {"initial": initial}
            lines.append(line | {"key": f"{initial}-{seed}"})
    lines.append(record("my-method", "my-init", 0.1, 0, 0.75))
    report = report_of(tmp_path, [with_masks(line, (0.1, 0.1, 0.1)) for line in lines])
    table = rows(report, "Test accuracy")
    assert table["GraNet, initial 0.8"]["test %"].startswith("73.05")
    assert table["my-method"]["init"] == "my-init"
    assert (
        rows(report, "Minus Static")["GraNet, initial 0.5"]["difference, points"] == "+2.00 ± 0.00"
    )
    figure = (tmp_path / "figures" / "cpu-against-density.svg").read_text()
    assert "my-method" in figure
    assert "GraNet, initial 0.5" in figure


def test_report_names_versions_commit_and_hardware(report):
    assert "9 runs: sparseopt 1.2.3, torch 2.9" in report
    assert "commit c0ffee; CPU, 2 threads" in report


def test_times_are_of_the_processor_of_the_runs_and_not_of_the_trials():
    lines = [record("rigl", "erk", 0.1, seed, 0.7 + 0.001 * seed) for seed in (0, 1)]
    for number, delta_t in enumerate((25, 75, 150)):
        trial = record("rigl", "erk", 0.1, 0, 0.71)
        trial["run"] |= {"delta_t": delta_t}
        trial["environment"] = trial["environment"] | {"processor": "another"}
        lines.append(trial | {"key": f"trial-{number}"})
    (group,) = group_by_protocol(lines)
    assert [len(group.timed(variant)) for variant in group.variants] == [2]
    text = text_of(lines)
    assert "Times are means over the runs on CPU," in text
    assert "- 2 runs: " in text
    assert "- 3 runs: " in text


def test_report_can_be_made_while_a_run_is_being_written(tmp_path):
    append_result(tmp_path / "results.jsonl", record("dense", None, None, 0, 0.8))
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write(json.dumps(record("set", "erk", 0.1, 0, 0.7))[:40])
    with pytest.warns(UserWarning, match="cut short"):
        report = write_report(tmp_path / "results.jsonl", tmp_path).read_text()
    assert "1 run." in report


def test_old_results_show_what_they_recorded_and_name_the_rest(tmp_path):
    lines = [
        record("static", "erk", 0.1, 0, 0.7),
        with_masks(record("snfs", "erk", 0.1, 0, 0.7), (1.0, 0.05, 0.2)),
        with_masks(record("snfs", "erk", 0.1, 1, 0.7), (1.0, 0.15, 0.4)),
    ]
    text = report_of(tmp_path, lines)
    assert "Not recorded for Static (ERK) 0.1." in text
    table = rows(text, "Masks over time, and the density of every layer")
    assert {name: row["SNFS (ERK)"] for name, row in table.items()} == {
        "`stem`": "1.000",
        "`body`": "0.100",
        "`head`": "0.300",
    }
    assert "Static" in rows(text, "Test accuracy")
    assert (tmp_path / "figures" / "cpu-masks-0.1.svg").exists()


def test_masks_are_drawn_where_there_is_something_to_compare(tmp_path):
    lines = [
        with_masks(record("rigl", "erk", 0.1, 0, 0.7), (1.0, 0.05, 0.2)),
        with_masks(record("set", "erk", 0.1, 0, 0.7), (1.0, 0.05, 0.2)),
        with_masks(record("snfs", "erk", 0.1, 0, 0.7), (0.8, 0.06, 0.3)),
        with_masks(record("rigl", "uniform", 0.174, 0, 0.7), (1.0, 0.1, 0.1)),
    ]
    table = rows(report_of(tmp_path, lines), "Masks over time, and the density of every layer")
    # Methods that end with the same densities share a column.
    assert table["`body`"] == {
        "layer": "`body`",
        "SET (ERK), RigL (ERK)": "0.050",
        "SNFS (ERK)": "0.060",
    }
    drawn = {path.name for path in (tmp_path / "figures").glob("*.png")}
    assert "cpu-masks-0.1.png" in drawn
    assert not any("0.174" in name for name in drawn)


def test_method_unknown_to_this_version_is_reported_all_the_same():
    lines = [record("dense", None, None, 0, 0.8), record("brand-new", "erk", 0.1, 0, 0.7)]
    table = rows(text_of(lines), "Test accuracy")
    assert list(table) == ["Dense", "brand-new"]


def test_report_without_results_is_refused(tmp_path):
    with pytest.raises(ResultsError, match="has no finished run"):
        write_report(tmp_path / "results.jsonl", tmp_path)
    assert list(tmp_path.iterdir()) == []
