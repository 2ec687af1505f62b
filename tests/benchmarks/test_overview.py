"""The short tables of the README and the docs contain the numbers of the results files."""

import json

import pytest

from benchmarks import overview
from benchmarks.cifar import overview as cifar
from benchmarks.overhead.results import Results
from tests.benchmarks.report_records import record

STATIC = (0.70, 0.71, 0.73)


def folder_of(root, name, lines):
    """A folder with a results file."""
    folder = root / name
    folder.mkdir()
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "results.jsonl").write_text(text)
    return folder


def runs(method, accuracies, **about):
    return [
        record(method, "erk", 0.1, seed, accuracy, **about)
        for seed, accuracy in enumerate(accuracies)
    ]


@pytest.fixture
def group(tmp_path):
    """RigL is far ahead of static for every seed; SET is ahead of static for some seeds only."""
    lines = [
        record("dense", None, None, 0, 0.9, inference=1000.0),
        *runs("static", STATIC),
        *runs("rigl", [accuracy + 0.05 for accuracy in STATIC]),
        *runs("set", [0.702, 0.708, 0.731]),
        record("small-dense", None, 0.1, 0, STATIC[0] - 0.1),
        record("small-dense", None, 0.1, 1, STATIC[1] - 0.1),
        record("static", "erk", 0.2, 0, 0.8),
        record("static", "uniform", 0.1, 0, 0.5),
    ]
    (found,) = cifar.groups(folder_of(tmp_path, "one", lines))
    return found


def cells(lines):
    """The rows of a table by their first cell."""
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if line]
    return {row[0]: row for row in rows[2:]}


def test_accuracies_are_means_over_the_seeds_and_the_best_comes_first(group):
    table = cells(cifar.accuracy_table(group, cifar.main_variants(group)))
    assert list(table) == ["Dense", "RigL", "SET", "Static", "Small-Dense"]
    # Mean 0.71333, and sqrt(((-1.333)^2 + (-0.333)^2 + 1.667^2) / 2) = 1.53 points.
    assert table["Static"][1:5] == ["ERK", "0.1", "3", "71.33 ± 1.53"]
    assert table["Static"][-1] == "0.200"
    assert table["Dense"][1:5] == ["-", "-", "1", "90.00"]


def test_difference_is_bold_only_where_it_is_beyond_its_spread(group):
    table = cells(cifar.accuracy_table(group, cifar.main_variants(group)))
    assert table["RigL"][5] == "**+5.00 ± 0.00**"
    assert table["SET"][5] == "+0.03 ± 0.21"
    assert table["Small-Dense"][5] == "**-10.00 ± 0.00**"
    assert table["Static"][5] == table["Dense"][5] == "-"


def test_sentences_claim_an_order_only_beyond_the_spread(group):
    variants = cifar.main_variants(group)
    assert list(cifar.order_sentences(group, variants)) == [
        "Ahead of Static: RigL.",
        "Behind Static: Small-Dense.",
        "Not clearly different from Static: SET.",
        "Behind RigL: Small-Dense, Static, SET.",
    ]


def test_method_with_one_seed_is_not_said_to_be_no_different(tmp_path):
    lines = [*runs("static", STATIC), *runs("set", STATIC), *runs("rigl", [0.9])]
    (found,) = cifar.groups(folder_of(tmp_path, "one of three", lines))
    assert list(cifar.order_sentences(found, list(found.variants))) == [
        "Not clearly different from Static: SET.",
        "One seed is too few to compare with Static: RigL.",
        "One seed is too few to compare with RigL: Static, SET.",
    ]


def test_single_seed_claims_no_order(tmp_path):
    lines = [*runs("static", [0.7]), *runs("rigl", [0.9])]
    (found,) = cifar.groups(folder_of(tmp_path, "one", lines))
    (sentence,) = cifar.order_sentences(found, list(found.variants))
    assert sentence == "A single seed does not tell the methods apart."


def test_published_numbers_stand_beside_the_full_protocol_only(tmp_path):
    lines = [*runs("rigl", STATIC), *runs("rigl", STATIC, reduced=False)]
    reduced, full = cifar.groups(folder_of(tmp_path, "both", lines))
    assert "92.4 ± 0.06 [R]" in "\n".join(cifar.accuracy_table(full))
    assert "published" not in "\n".join(cifar.accuracy_table(reduced))
    assert "Do not compare it with published numbers." in cifar.protocol(reduced)
    assert "REDUCED" not in cifar.protocol(full).upper()


def test_every_full_protocol_and_the_largest_reduced_one_come_first(tmp_path):
    folder_of(tmp_path, "small", runs("rigl", STATIC[:1]))
    folder_of(tmp_path, "large", runs("rigl", STATIC))
    folder_of(tmp_path, "paper", runs("rigl", STATIC[:2], reduced=False))
    shown = cifar.headline(tmp_path)
    assert [(one.protocol["name"], len(one.records)) for one in shown] == [("paper", 2), ("cpu", 3)]


def test_runs_by_the_full_protocol_are_said_with_the_published_accuracy(tmp_path):
    folder_of(tmp_path, "reduced", runs("rigl", STATIC))
    assert list(cifar.full_protocol_phrases(tmp_path)) == []
    folder_of(tmp_path, "paper", runs("rigl", [0.9203], reduced=False))
    assert list(cifar.full_protocol_phrases(tmp_path)) == [
        "RigL (ERK) 92.03 % by the full protocol (250 epochs, 1 seed, published: 92.4 ± 0.06 %)"
    ]


def test_full_protocol_without_the_dense_network_does_not_hide_others(tmp_path):
    dense = record("dense", None, None, 0, 0.9, inference=1000.0)
    folder_of(tmp_path, "reduced", [dense, *runs("rigl", STATIC)])
    folder_of(tmp_path, "paper", runs("rigl", STATIC[:1], reduced=False))
    assert cifar.most_telling("rigl", tmp_path).protocol["name"] == "cpu"


def test_a_method_is_shown_by_the_protocol_that_has_it(tmp_path):
    folder_of(tmp_path, "large", runs("rigl", STATIC))
    folder_of(tmp_path, "small", runs("rigl-struct", STATIC[:1]))
    assert len(cifar.most_telling("rigl-struct", tmp_path).records) == 1
    assert len(cifar.most_telling("rigl", tmp_path).records) == 3
    with pytest.raises(LookupError, match="method='set'"):
        cifar.most_telling("set", tmp_path)


def test_every_method_of_a_page_is_shown_by_some_protocol(tmp_path):
    folder_of(tmp_path, "large", runs("rigl", STATIC))
    folder_of(tmp_path, "paper", runs("srigl", STATIC[:1], reduced=False))

    def shown(*methods):
        return [one.protocol["name"] for one in cifar.groups_with(methods, tmp_path)]

    assert shown("RigL") == ["cpu"]
    assert shown("srigl", "RigL", "SET") == ["paper", "cpu"]
    assert shown("SET") == []


TITLES = {
    "wrn-22-2": "WRN-22-2",
    "resnet-50": "ResNet-50",
    "gpt": "GPT-like transformer",
    "mlp": "17-64-64-6",
    "bag": "1,000 linear layers of 32x32",
}


def test_costs_are_those_of_the_results_file():
    # Entries that were measured before have the contender's former name.
    text = overview.OVERHEAD.read_text().replace("sparseopt, compact", "sparseopt, live")
    entries = json.loads(text)["entries"]
    steps = [
        entry
        for entry in entries
        if (entry["figures"], entry["density"]) == ("steps", 0.1)
        and "sparseopt, live" in entry["contenders"]
    ]
    found = overview.cost_table(Results(overview.OVERHEAD))[2:-1]
    assert len(found) == len(steps)
    for entry in steps:
        ours, plain = (entry["contenders"][name] for name in ("sparseopt, live", "plain"))
        held = sum(ours["bytes"][kind] for kind in ("state", "index", "masks", "other"))
        threads = entry["made_with"]["threads"]
        case = f"| {TITLES[entry['workload']]} | `{entry['optimizer']}` | {threads} |"
        (line,) = (line for line in found if line.startswith(case))
        assert f"| {ours['step']['ratio']['median']:.2f} (" in line
        assert f"| {held / plain['bytes']['state']:.2f} |" in line


ENVIRONMENT = {"processor": "P", "threads": 2}


def test_time_of_compacted_models_is_of_fastest_to_fastest():
    times = {
        "dense, float32": 10.0,
        "dense, bfloat16": 8.0,
        "compacted, float32": 4.0,
        "compacted, bfloat16": 5.0,
        "by hand, float32": 3.0,
    }
    record = {"workload": "net", "density": 0.2, "flops_ratio": 0.19, "environment": ENVIRONMENT}
    record["inference"] = [{"batch": 64, "milliseconds": times}]
    row = cells(overview.speed_table("inference", [record]))["net"]
    assert row == ["net", "0.2", "64", "P", "2", "0.190", "0.500", "0.375"]


def test_condensed_layers_are_compared_with_the_fastest_dense_implementation():
    linear = {"shape": [8, 16], "density": 0.1, "rows": 1, "chosen": "condensed"}
    linear |= {"dense": {"a": 3e-6, "b": 2e-6}, "sparse": {"c": 4e-6, "d": 1e-6}}
    row = cells(overview.speed_table("linear", [{"environment": ENVIRONMENT, "linear": [linear]}]))[
        "8 x 16"
    ]
    assert row == ["8 x 16", "0.1", "1", "P", "2", "2, b", "1, d", "2.00", "condensed"]


def test_training_steps_are_averages_over_a_period_with_one_update():
    times = {"dense, float32": 10.0, "dense, bfloat16": 8.0, "by hand, float32": 3.0}
    times |= {"masked, float32": 9.0, "masked pair, float32": 28.0}
    times |= {"compacted, float32": 4.0, "compacted pair, float32": 44.0}
    record = {"workload": "net", "density": 0.2, "environment": ENVIRONMENT}
    record["training"] = [{"batch": 64, "milliseconds": times}]
    row = cells(overview.speed_table("training", [record]))["net"]
    # Of 100 steps 99 are ordinary; the update takes 19 of a masked pair, and 40 of a compacted.
    assert row == ["net", "0.2", "64", "P", "2", "1.137", "0.545", "0.375"]


def test_channels_that_were_ever_live_are_counted_over_all_layers():
    updates = [
        {"ever": {"a": 2, "b": 2}, "live": {"a": 2, "b": 2}},
        {"ever": {"a": 2, "b": 6}, "live": {"a": 2, "b": 2}},
    ]
    record = {"updates": updates, "channels": {"a": 8, "b": 12}}
    record |= {"first_loss": 2.3, "last_loss": 1.5}
    record |= {"method": "m", "model": "net", "data": "images", "density": 0.1}
    row = cells(overview.speed_table("movement", [record]))["m"]
    assert row[1:5] == ["net", "images", "0.1", "20.0% -> 40.0%"]
    assert row[5:] == ["1 of 2", "20.0%", "2.30, 1.50"]
