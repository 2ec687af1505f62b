"""The public types of arguments are those that the signatures have."""

import typing

import pytest

import sparseopt
from sparseopt import typing as public

HINTS = typing.get_type_hints(sparseopt.SparseOptimizer.__init__)


@pytest.mark.parametrize(
    ("argument", "name"),
    [("init", "Init"), ("decay", "Decay"), ("state", "StateMode")],
)
def test_type_of_an_argument_is_importable(argument, name):
    assert HINTS[argument] == getattr(public, name)


@pytest.mark.parametrize(("argument", "name"), [("sparse", "Selection"), ("regrow", "Regrow")])
def test_type_of_an_optional_argument_is_importable(argument, name):
    assert HINTS[argument] == getattr(public, name) | None


@pytest.mark.parametrize(
    ("function", "argument", "name"),
    [
        (sparseopt.condense, "masks", "Masks"),
        (sparseopt.compact, "masks", "Masks"),
        (sparseopt.condense, "precision", "Precision"),
    ],
)
def test_type_of_an_argument_of_a_function_is_importable(function, argument, name):
    assert typing.get_type_hints(function)[argument] == getattr(public, name)


def test_schedule_of_the_library_is_a_public_schedule():
    schedule: public.Schedule = sparseopt.UpdateSchedule(delta_t=10, t_end=100)
    assert [schedule.is_update(step) for step in (5, 10, 100)] == [False, True, False]
