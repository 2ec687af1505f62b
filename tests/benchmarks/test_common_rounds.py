"""Times of phases are compared within one round. Phases that a round lacks are skipped."""

import pytest

from benchmarks.common.rounds import Rounds

ROUNDS = Rounds(
    [
        {"plain": {"step": 1.0}, "ours": {"step": 2.0}},
        {"plain": {"step": 2.0}, "ours": {"update": 8.0}},
        {"plain": {"step": 4.0}, "ours": {"step": 4.0}},
        {"plain": {"step": 1.0}, "ours": {"step": 4.0}},
    ]
)


def test_ratio_is_of_two_times_of_the_same_round() -> None:
    steps = ROUNDS.ratio(ROUNDS.of("ours", "step"), to=("plain", "step"))
    assert steps == {"count": 3, "q1": 1.5, "median": 2.0, "q3": 3.0}
    updates = ROUNDS.ratio(ROUNDS.of("ours", "update"), to=("plain", "step"))
    assert updates == pytest.approx({"count": 1, "q1": 4.0, "median": 4.0, "q3": 4.0})


def test_milliseconds_are_those_of_the_rounds_that_had_the_phase() -> None:
    found = ROUNDS.summary(ROUNDS.of("ours", "step"), to=("plain", "step"))
    assert found["milliseconds"] == {"count": 3, "q1": 3000.0, "median": 4000.0, "q3": 4000.0}
    assert found["ratio"] == {"count": 3, "q1": 1.5, "median": 2.0, "q3": 3.0}


def test_phase_that_nobody_had_has_no_summary() -> None:
    nothing = ROUNDS.summary(ROUNDS.of("plain", "update"), to=("plain", "step"))
    assert nothing == {"milliseconds": None, "ratio": None}
