"""The report's table of structured methods: times and FLOPs compared with values by hand."""

import pytest

from benchmarks.cifar.records import append_result
from tests.benchmarks.report_records import record, timing
from tests.benchmarks.test_cifar_report import report_of, rows, text_of

STRUCT = [record("rigl-struct", "erk", 0.1, seed, 0.69 + 0.01 * seed) for seed in (0, 1)]
SMALL = record("small-dense", None, 0.1, 0, 0.70, inference=110.0)
RIGL = record("rigl", "erk", 0.1, 0, 0.72, inference=170.0)
HEADING = "Measured times, and structured sparsity"
TIME = "inference time, batch 128"
INFERENCE = (
    {1: (0.5, 0.6, 0.7), 128: (0.30, 0.40, 0.50)},
    {1: (0.6, 0.7, 0.9), 128: (0.35, 0.50, 0.55)},
)
TRAINING = ((1.0, 1.1, 2.0), (1.0, 1.3, 3.0))
TIMES = [
    timing(line, inference=inference, training=training)
    for line, inference, training in zip(STRUCT, INFERENCE, TRAINING, strict=True)
]


def table(measured=(), lines=(*STRUCT, SMALL, RIGL)):
    return rows(text_of(list(lines), measured), HEADING)


def test_table_is_there_once_a_structured_method_has_been_run():
    assert HEADING not in text_of([SMALL, RIGL])
    assert list(table()) == ["Small-Dense", "RigL", "RigL-Struct"]


@pytest.mark.parametrize(
    ("method", "init", "density", "dataset", "accuracy", "wall_time"),
    [
        ("rigl-struct", "erk", 0.1, "cifar10", "89.6 ± 0.16 [S]", "0.17x"),
        ("rigl-struct", "uniform", 0.2, "cifar10", "90.4 ± 0.27 [S]", "0.20x"),
        ("rigl-struct", "erk", 0.2, "cifar100", "72.9 ± 0.08 [S]", "0.38x"),
        ("srigl", "erk", 0.1, "cifar10", "-", "-"),
    ],
)
def test_published_numbers_stand_beside_ours(method, init, density, dataset, accuracy, wall_time):
    line = record(method, init, density, 0, 0.69, dataset=dataset)
    (row,) = table(lines=[line]).values()
    assert row["test %"] == "69.00"
    assert row["paper %, full protocol"] == accuracy
    assert row['paper, "wall time" (FLOPs)'] == wall_time


def test_published_numbers_of_the_other_methods_come_from_the_same_table():
    found = table()
    assert found["Small-Dense"]["paper %, full protocol"] == "89.0 ± 0.35 [S]"
    assert found["Small-Dense"]['paper, "wall time" (FLOPs)'] == "0.11x"
    assert found["RigL"]["paper %, full protocol"] == "92.4 ± 0.06 [S]"
    assert found["RigL"]['paper, "wall time" (FLOPs)'] == "1.0x"


def test_times_are_means_over_seeds_with_the_widest_quartiles_and_leave_flops_alone():
    row = table(TIMES)["RigL-Struct"]
    assert row["inference time, batch 1"] == "0.650x (0.500 to 0.900)"
    assert row[TIME] == "0.450x (0.300 to 0.550)"
    assert row["training time"] == "1.200x (1.000 to 3.000)"
    # FLOPs of inference are 200 of 1,000, and FLOPs of training have the same ratio.
    assert row["inference FLOPs"] == row["train FLOPs"] == "0.200x"


def test_cells_that_were_not_measured_say_so():
    assert table()["RigL"]["inference time"] == "not measured yet"
    assert "No times have been measured yet" in text_of(STRUCT)
    found = table(TIMES)
    assert found["RigL"][TIME] == found["RigL"]["training time"] == "not measured yet"


def test_accuracy_is_compared_with_rigl_and_with_small_dense_by_seed():
    text = text_of([*STRUCT, SMALL, RIGL])
    assert rows(text, "Minus RigL")["RigL-Struct"]["each (seed)"] == "-3.00 (0)"
    assert rows(text, "Minus Small-Dense")["RigL-Struct"]["each (seed)"] == "-1.00 (0)"


def test_structured_method_that_was_imported_for_its_run_has_a_row_with_its_full_training():
    line = record("mine", "erk", 0.1, 0, 0.7)
    line["recipe"] = {"length": 3, "leaves_structure": True}
    assert list(table(lines=[line, SMALL, RIGL])) == ["Small-Dense", "RigL", "mine"]
    measured = timing(line, inference=INFERENCE[0], training=(1.0, 1.1, 2.0))
    row = table([measured], [line])["mine"]
    assert row["training time"] == "3.300x (3.000 to 6.000)"
    assert row[TIME] == "0.400x (0.300 to 0.500)"


def test_last_times_of_a_run_count_and_machines_are_not_mixed():
    again = timing(STRUCT[0], inference={128: (0.1, 0.2, 0.9)}, training=(1, 1.1, 2))
    other = timing(STRUCT[0], inference={128: (7, 8, 9)}, training=(7, 8, 9), threads=1)
    text = text_of(list(STRUCT), [*TIMES, other, again])
    assert rows(text, HEADING)["RigL-Struct"][TIME] == "0.350x (0.100 to 0.900)"
    assert "Measured on CPU, 2 threads." in text
    assert rows(text, "Times on CPU, 1 thread")["RigL-Struct"][TIME] == "8.000x (7.000 to 9.000)"


def test_form_says_what_was_removed_and_a_busy_machine_is_mentioned():
    lines = [record("srigl", "erk", 0.1, 0, 0.7), STRUCT[0]]
    full = {"parameters": 100, "share_reached": 1.0}
    measured = [
        timing(lines[0], inference={128: (1, 1, 1)}, training=(1, 1, 1), form=full, others=1.25),
        TIMES[0],
    ]
    text = text_of(lines, measured)
    found = rows(text, HEADING)
    assert found["SRigL"]["inference as"] == "compacted, nothing to take out"
    assert found["RigL-Struct"]["inference as"] == "compacted, 90 % of the possible saving"
    assert "While 1 of 2 networks were measured, other work kept up to 1.2 processors" in text


def test_times_are_read_beside_the_results_and_have_a_figure(tmp_path):
    for line in TIMES:
        append_result(tmp_path / "timings.jsonl", line)
    report = report_of(tmp_path, list(STRUCT))
    assert rows(report, HEADING)["RigL-Struct"][TIME] == "0.450x (0.300 to 0.550)"
    assert "(figures/cpu-against-time.png)" in report
    assert (tmp_path / "figures" / "cpu-against-time.svg").stat().st_size > 1000
