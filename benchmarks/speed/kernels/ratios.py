"""The numbers of results files: times, ratios, sums over networks and break-even densities."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.speed.kernels.implementations import INFERENCE, OURS, TRAINING
from benchmarks.speed.kernels.layers import Layer
from benchmarks.speed.kernels.measuring import HEADLINE, Row
from benchmarks.speed.records import Record


@dataclass(frozen=True)
class Comparison:
    """A comparison of our kernels in one precision with dense code in one precision."""

    ours: str
    dense: str

    @property
    def words(self) -> str:
        """The words for the head of a column."""
        return f"{SHORT[self.ours]} / {SHORT[self.dense]}"


SHORT = {"float32": "fp32", "bfloat16": "bf16"}
FP32 = Comparison("float32", "float32")
BF16 = Comparison("bfloat16", "bfloat16")
MIXED = Comparison("float32", "bfloat16")
COMPARISONS = (FP32, BF16, MIXED)


def layer_of(one: Record) -> Layer:
    """The layer of a record."""
    return Layer(**{name: one[name] for name in Layer.__dataclass_fields__})


def dense_time(one: Record, what: str, precision: str) -> tuple[float, str] | None:
    """Milliseconds and name of the fastest dense code; ``None`` if it was not measured."""
    rows = _rows(one, what, precision)
    return min(
        ((row["milliseconds"][0], row["implementation"]) for row in rows if "density" not in row),
        default=None,
    )


def sparse_row(
    one: Record, what: str, precision: str, density: float, implementation: str = OURS
) -> Row | None:
    """The row of a sparse implementation, our kernels by default."""
    found = (row for row in _rows(one, what, precision) if row.get("density") == density)
    return next((row for row in found if row["implementation"] == implementation), None)


def _rows(one: Record, what: str, precision: str) -> Iterable[Row]:
    return (row for row in one["times"] if row["what"] == what and row["precision"] == precision)


def densities_of(layers: Iterable[Record]) -> list[float]:
    """The densities at which all of these layers were measured with our kernels."""
    sets = [
        {
            row["density"]
            for row in one["times"]
            if row["implementation"] == OURS and "density" in row
        }
        for one in layers
    ]
    return sorted(set.intersection(*sets)) if sets else []


def passes_of(record: Record) -> list[str]:
    """The passes of a workload: training, inference, or both in this order."""
    found = {row["what"] for row in record["layers"][0]["times"]}
    return [what for what in (TRAINING, INFERENCE) if what in found]


def is_complete(record: Record) -> bool:
    """Whether all shapes of the network were measured, so that sums are over the full network."""
    return bool(len(record["layers"]) == record["shapes"])


def speedups(layers: Sequence[Record], what: str, compared: Comparison) -> dict[float, float]:
    """Dense time over our time by density: sums over layers, each as often as it occurs."""
    dense = dense_total(layers, what, compared.dense)
    if dense is None:
        return {}
    totals = {
        density: sparse_total(layers, what, compared.ours, density)
        for density in densities_of(layers)
    }
    return {density: dense / total for density, total in totals.items() if total is not None}


def dense_total(layers: Sequence[Record], what: str, precision: str) -> float | None:
    """The sum over the layers of the milliseconds of the fastest dense code."""
    found = [dense_time(one, what, precision) for one in layers]
    if None in found:
        return None
    return sum(one["count"] * time[0] for one, time in zip(layers, found, strict=True) if time)


def sparse_total(
    layers: Sequence[Record], what: str, precision: str, density: float, implementation: str = OURS
) -> float | None:
    """The sum of the milliseconds of sparse code; ``None`` if it does not support all layers."""
    rows = [sparse_row(one, what, precision, density, implementation) for one in layers]
    if None in rows:
        return None
    return sum(
        one["count"] * row["milliseconds"][0] for one, row in zip(layers, rows, strict=True) if row
    )


def break_even(ratios: Mapping[float, float]) -> str:
    """The density at which the ratio falls to 1, by a power law between two measured densities.

    Args:
        ratios: Dense time over sparse time, by density.

    Returns:
        The density, or words for a density beyond the measured ones.
    """
    points = sorted(ratios.items())
    for (low, above), (high, below) in itertools.pairwise(points):
        if above >= 1 > below:
            share = math.log(above) / math.log(above / below)
            return f"{low * (high / low) ** share:.2f}"
    last, ratio = points[-1]
    return f"> {last:g}" if ratio >= 1 else f"< {points[0][0]:g}"


def losers(layers: Iterable[Record], what: str, compared: Comparison) -> list[Layer]:
    """The shapes for which dense code is faster at the headline density."""
    found = []
    for one in layers:
        ratio = speedups([one], what, compared).get(HEADLINE)
        if ratio is not None and ratio < 1:
            found.append(layer_of(one))
    return found


def useful_rate(layers: Sequence[Record], part: str, precision: str) -> float | None:
    """The rate of a part of training: operations with live weights, in 1e9 a second."""
    total = sparse_total(layers, part, precision, HEADLINE)
    if total is None:
        return None
    operations = sum(
        2 * one["count"] * round(HEADLINE * layer_of(one).weights) * layer_of(one).uses
        for one in layers
    )
    return operations / total / 1e6
