"""Types of command-line arguments: each refuses a wrong value, and says what would be right."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, least=1)


def not_negative(text: str) -> int:
    """A whole number of at least 0."""
    return _whole(text, least=0)


def multiple_of(unit: int) -> Callable[[str], int]:
    """The type of a positive multiple of ``unit``.

    Example:
        >>> multiple_of(32)("64")
        64
    """

    def multiple(text: str) -> int:
        if not text.isdecimal() or int(text) < 1 or int(text) % unit:
            raise argparse.ArgumentTypeError(f"must be a multiple of {unit}, got {text!r}")
        return int(text)

    return multiple


def positive_number(text: str) -> float:
    """A finite number above 0."""
    value = _number(text)
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, got {text!r}")
    return value


def density(text: str) -> float:
    """A share of live weights, above 0 and at most 1."""
    value = _number(text)
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 1, got {text!r}")
    return value


def device(text: str) -> torch.device:
    """A device of this machine, such as ``cpu`` or ``cuda:1``."""
    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{text!r} can't be used: {reason}") from None


def _whole(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(
            f"must be a whole number of at least {least}, got {text!r}"
        )
    return int(text)


def _number(text: str) -> float:
    """The number, or NaN for other text: no comparison is true for it."""
    try:
        return float(text)
    except ValueError:
        return math.nan
