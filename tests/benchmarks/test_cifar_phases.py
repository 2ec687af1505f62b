"""The report compares the training loss of each method with Static's, phase by phase."""

import pytest

from benchmarks.cifar.report.phases import phases, phases_table
from benchmarks.cifar.report.results import group_by_protocol
from tests.benchmarks.report_records import record

RATES = (0.1, 0.1, 0.02, 0.02)


def run(method, seed, losses, *, kind="step", init="erk", rates=RATES):
    """A run of four epochs, in the third of which the learning rate falls."""
    line = record(method, init, 0.1, seed, 0.8)
    settings = line["protocol"]["settings"] | {"schedule": {"kind": kind}}
    line["protocol"] = line["protocol"] | {"settings": settings}
    curve = [
        {"epoch": number, "lr": rate, "train_loss": loss}
        for number, (rate, loss) in enumerate(zip(rates, losses, strict=True), start=1)
    ]
    return line | {"curve": curve}


STATIC = [run("static", 0, (2.0, 1.0, 0.8, 0.5)), run("static", 1, (2.0, 1.2, 0.8, 0.7))]
RIGL = [run("rigl", 0, (2.0, 1.1, 0.8, 0.4)), run("rigl", 1, (2.0, 1.4, 0.8, 0.5))]


def of(*records):
    (group,) = group_by_protocol(records)
    return group


def test_differences_are_paired_by_seed_and_taken_at_the_end_of_each_phase():
    (found,) = phases(of(*STATIC, *RIGL, run("rigl", 2, (9.0, 9.0, 9.0, 9.0))))
    assert found.variant.method == "rigl"
    assert found.early.to_dict() == pytest.approx({0: 0.1, 1: 0.2})
    assert found.late.to_dict() == pytest.approx({0: -0.1, 1: -0.2})


def test_phase_of_the_high_rate_ends_where_it_falls_after_a_warm_up_too():
    records = [
        run(method, 0, losses, rates=(0.05, 0.1, 0.1, 0.02))
        for method, losses in (("static", (2.0, 1.0, 0.8, 0.5)), ("rigl", (5.0, 3.0, 0.9, 0.4)))
    ]
    (found,) = phases(of(*records))
    assert found.early.to_dict() == pytest.approx({0: 0.1})
    assert found.late.to_dict() == pytest.approx({0: -0.1})


def test_table_and_sentence_say_both_differences():
    group = of(*STATIC, *RIGL)
    *_, row, _ = phases_table(group)
    assert row == "| RigL | ERK | 0.1 | 2 | +0.150 ± 0.071 | -0.150 ± 0.071 |"
    (found,) = phases(group)
    assert found.words == (
        "RigL (ERK): the training loss is 0.150 above Static's before the learning rate first "
        "falls, and 0.150 below Static's at the end."
    )


def test_equal_losses_are_said_to_be_the_same():
    (found,) = phases(of(STATIC[0], run("set", 0, (2.0, 1.0002, 0.8, 0.5))))
    assert "is the same as Static's before" in found.words
    assert "the same as Static's at the end" in found.words


@pytest.mark.parametrize(
    "records",
    [
        RIGL,
        [run("static", 0, (2.0, 1.0, 0.8, 0.5), init="uniform"), *RIGL],
        [run(one, 0, (2.0, 1.0, 0.8, 0.5), kind="one-cycle") for one in ("static", "rigl")],
        [record("static", "erk", 0.1, 0, 0.8), record("rigl", "erk", 0.1, 0, 0.8)],
    ],
)
def test_without_static_at_this_init_or_a_falling_rate_there_is_no_table(records):
    assert phases_table(of(*records)) == []
