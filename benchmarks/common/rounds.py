"""Measurements in rounds: seconds of several contenders' phases, compared within a round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import pandas as pd

from benchmarks.common.units import MILLI
from sparseopt.speedup.timing import in_turn

#: The seconds of each phase, for one contender in one round.
Sample = dict[str, float]
#: Count, median and quartiles; None where nothing was measured.
Quartiles = dict[str, float] | None

Item = TypeVar("Item")


class Rounds:
    """Seconds in a table: a row for each round, a column for each phase of each contender."""

    def __init__(self, samples: Sequence[Mapping[str, Sample]]) -> None:
        self.names = set(samples[0])
        self._table = pd.DataFrame(
            {(name, phase): time for name, one in each.items() for phase, time in one.items()}
            for each in samples
        )

    def of(self, name: str, phase: str) -> pd.Series[float]:
        """Return the seconds of a phase by round; NaN in rounds without it."""
        if (name, phase) in self._table.columns:
            return self._table[(name, phase)]
        return pd.Series(float("nan"), index=self._table.index)

    def ratio(self, times: pd.Series[float], to: tuple[str, str]) -> Quartiles:
        """Summarise times as multiples of another contender's phase in the same round."""
        return quartiles(times / self.of(*to))

    def summary(self, times: pd.Series[float], to: tuple[str, str]) -> dict[str, Quartiles]:
        """Summarise times, in milliseconds and as multiples of another contender's phase."""
        return {"milliseconds": quartiles(MILLI * times), "ratio": self.ratio(times, to)}


def measure_rounds(
    contenders: Mapping[str, Item], measure: Callable[[Item], Sample], rounds: int
) -> Rounds:
    """Measure every contender once a round, in turn, in a new random order each round."""
    measures = {name: partial(measure, contender) for name, contender in contenders.items()}
    return Rounds(in_turn(measures, rounds=rounds))


def quartiles(values: pd.Series[float]) -> Quartiles:
    """Return count, median and quartiles of the values that are not NaN.

    Example:
        >>> quartiles(pd.Series([1.0, 2.0, None, 3.0, 4.0, 5.0]))
        {'count': 5, 'q1': 2.0, 'median': 3.0, 'q3': 4.0}
    """
    known = values.dropna()
    if known.empty:
        return None
    q1, median, q3 = (round(float(value), 6) for value in known.quantile([0.25, 0.5, 0.75]))
    return {"count": len(known), "q1": q1, "median": median, "q3": q3}
