"""Arguments of the benchmarks are read, and wrong ones are refused with what would be right."""

import argparse

import pytest
import torch

from benchmarks.common import arguments


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (arguments.positive, "3", 3),
        (arguments.not_negative, "0", 0),
        (arguments.multiple_of(32), "96", 96),
        (arguments.positive_number, "1e-3", 1e-3),
        (arguments.density, "0.25", 0.25),
        (arguments.density, "1", 1.0),
        (arguments.device, "cpu", torch.device("cpu")),
    ],
)
def test_right_argument_is_read(kind, text, value):
    assert kind(text) == value


@pytest.mark.parametrize(
    ("kind", "texts", "right"),
    [
        (arguments.positive, ("0", "-1", "1.5", "many", ""), "a whole number of at least 1"),
        (arguments.not_negative, ("-1", "1.5", "many"), "a whole number of at least 0"),
        (arguments.multiple_of(32), ("100", "0", "-32", "wide"), "a multiple of 32"),
        (arguments.positive_number, ("0", "-1", "inf", "nan", "fast"), "a finite number above 0"),
        (arguments.density, ("0", "-0.1", "3", "nan", "most"), "above 0 and at most 1"),
    ],
)
def test_wrong_argument_is_refused_with_the_right_ones_and_its_value(kind, texts, right):
    for text in texts:
        with pytest.raises(argparse.ArgumentTypeError, match=f"must be {right}, got '{text}'"):
            kind(text)


@pytest.mark.parametrize("text", ["abacus", "cuda:99"])
def test_device_that_this_machine_lacks_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"'{text}' can't be used: "):
        arguments.device(text)
