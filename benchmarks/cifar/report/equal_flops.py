"""ERK beside uniform where they cost as many FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.cifar.report.comparison import Difference, Spread, difference
from benchmarks.cifar.report.differences import each_seed, order_of
from benchmarks.cifar.report.summary import Group, Variant, title
from benchmarks.common.tables import MISSING, table

OTHERS = {"erk": "uniform", "uniform": "erk"}
# Densities that were chosen for equal FLOPs meet them to within the rounding of live counts.
EQUAL = 0.02


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        accuracy: Mean test accuracy, a share.
        densities: The density that was run, or the two between which this is interpolated.
    """

    accuracy: float
    densities: tuple[float, ...]

    def __str__(self) -> str:
        text = f"{100 * self.accuracy:.2f} at {self.densities[0]:.3g}"
        if len(self.densities) == 1:
            return text
        return f"{text} to {self.densities[1]:.3g}, interpolated"


@dataclass(frozen=True)
class EqualFlops:
    """Both distributions at the same inference FLOPs.

    Attributes:
        method: The method.
        flops: Multiple of the dense network's.
        erk: With ERK.
        uniform: With uniform.
        paired: ERK minus uniform by seed, if both were run there with a seed in common.
    """

    method: str
    flops: float
    erk: Side
    uniform: Side
    paired: Difference | None


def equal_flops(group: Group) -> list[EqualFlops]:
    """Every variant with a distribution, where the other one is known at its FLOPs.

    That is so where the other was run at the same FLOPs, or at fewer and at more: then its accuracy
    is interpolated linearly over the logarithm of the FLOPs.
    """
    found = []
    for variant in group.variants:
        if variant.init not in OTHERS:
            continue
        line = [v for v in group.variants if (v.method, v.init) == _opposite(variant)]
        flops = group.inference_flops(variant)
        met = [v for v in line if abs(group.inference_flops(v) / flops - 1) < EQUAL]
        if met and variant.init == "erk":
            paired = difference(group, variant, met[0])
            sides = _run(group, variant), _run(group, met[0])
            found.append(EqualFlops(variant.method, flops, *sides, paired))
        elif not met and (between := _interpolated(group, line, flops)):
            sides = _run(group, variant), between
            erk, uniform = sides if variant.init == "erk" else sides[::-1]
            found.append(EqualFlops(variant.method, flops, erk, uniform, None))
    return found


def equal_flops_table(group: Group, comparisons: Sequence[EqualFlops]) -> list[str]:
    """ERK and uniform side by side; an order is claimed where both were run."""
    spread = Spread(group)
    methods = list(dict.fromkeys(one.method for one in comparisons))
    rows = []
    for one in sorted(comparisons, key=lambda one: (methods.index(one.method), one.flops)):
        points = f"{100 * (one.erk.accuracy - one.uniform.accuracy):+.2f}"
        rows.append(
            [
                title(one.method),
                f"{one.flops:.3f}x",
                str(one.erk),
                str(one.uniform),
                points if one.paired is None else one.paired.statistic.percent(sign=True),
                MISSING if one.paired is None else order_of(one.paired, spread),
                MISSING if one.paired is None else each_seed(one.paired),
            ]
        )
    header = ["method", "inference FLOPs", "ERK, test % at density"]
    header += ["uniform, test % at density", "ERK minus uniform, points", "ERK is", "each (seed)"]
    return table(header, rows)


def _opposite(variant: Variant) -> tuple[str, str]:
    assert variant.init is not None
    return variant.method, OTHERS[variant.init]


def _run(group: Group, variant: Variant) -> Side:
    assert variant.density is not None
    return Side(group.statistic(variant, "accuracy", "test").mean, (variant.density,))


def _interpolated(group: Group, line: Sequence[Variant], flops: float) -> Side | None:
    points = [(group.inference_flops(v), _run(group, v)) for v in line]
    points.sort(key=lambda point: point[0])
    below = [point for point in points if point[0] < flops]
    above = [point for point in points if point[0] > flops]
    if not below or not above:
        return None
    (left, low), (right, high) = below[-1], above[0]
    accuracies = [low.accuracy, high.accuracy]
    accuracy = float(np.interp(np.log(flops), np.log([left, right]), accuracies))
    return Side(accuracy, (*low.densities, *high.densities))
