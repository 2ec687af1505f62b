"""ERK beside uniform where they cost as many FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.cifar.report.results import Group, Variant, title
from benchmarks.cifar.report.stats import Difference, Spread, difference
from benchmarks.common.tables import MISSING, table

OTHERS = {"erk": "uniform", "uniform": "erk"}
# Densities that were chosen for equal FLOPs meet them to within the rounding of live counts.
EQUAL = 0.02


@dataclass(frozen=True)
class Side:
    """One of the two."""

    accuracy: float
    densities: tuple[float | None, ...]

    def __str__(self) -> str:
        text = f"{100 * self.accuracy:.2f} at {self.densities[0]:.3g}"
        if len(self.densities) == 1:
            return text
        return f"{text} to {self.densities[1]:.3g}, interpolated"


@dataclass(frozen=True)
class EqualFlops:
    """Both distributions at the same inference FLOPs."""

    method: str
    flops: float
    erk: Side
    uniform: Side
    paired: Difference | None = None


def equal_flops(group: Group) -> list[EqualFlops]:
    """Every variant with a distribution, where the other one is known at its FLOPs.

    That is so where the other was run at the same FLOPs, or at fewer and at more: then its accuracy
    is interpolated linearly over the logarithm of the FLOPs.
    """
    found = []
    for variant in group.variants:
        if variant.init not in OTHERS:
            continue
        opposite = (variant.name, OTHERS[variant.init])
        line = [v for v in group.variants if (v.name, v.init) == opposite]
        flops = group.inference_flops(variant)
        met = [v for v in line if abs(group.inference_flops(v) / flops - 1) < EQUAL]
        own = Side(group.mean(variant, "test"), (variant.density,))
        if met and variant.init == "erk":
            other = Side(group.mean(met[0], "test"), (met[0].density,))
            paired = difference(group, variant, met[0])
            found.append(EqualFlops(variant.method, flops, own, other, paired))
        elif not met and (between := _interpolated(group, line, flops)):
            erk, uniform = (own, between) if variant.init == "erk" else (between, own)
            found.append(EqualFlops(variant.method, flops, erk, uniform))
    methods = list(dict.fromkeys(one.method for one in found))
    return sorted(found, key=lambda one: (methods.index(one.method), one.flops))


def equal_flops_table(group: Group, comparisons: Sequence[EqualFlops]) -> list[str]:
    """ERK and uniform side by side; an order is claimed where both were run."""
    spread = Spread(group)
    rows = []
    for one in comparisons:
        points = f"{100 * (one.erk.accuracy - one.uniform.accuracy):+.2f}"
        rows.append(
            [
                title(one.method),
                f"{one.flops:.3f}x",
                str(one.erk),
                str(one.uniform),
                points if one.paired is None else one.paired.percent(),
                spread.order(one.paired),
                MISSING if one.paired is None else one.paired.each_seed(),
            ]
        )
    header = ["method", "inference FLOPs", "ERK, test % at density"]
    header += ["uniform, test % at density", "ERK minus uniform, points", "ERK is", "each (seed)"]
    return table(header, rows)


def _interpolated(group: Group, line: Sequence[Variant], flops: float) -> Side | None:
    points = sorted((group.inference_flops(v), v) for v in line)
    below = [point for point in points if point[0] < flops]
    above = [point for point in points if point[0] > flops]
    if not below or not above:
        return None
    ends = [below[-1], above[0]]
    accuracies = [group.mean(variant, "test") for _, variant in ends]
    accuracy = float(np.interp(np.log(flops), np.log([place for place, _ in ends]), accuracies))
    return Side(accuracy, tuple(variant.density for _, variant in ends))
