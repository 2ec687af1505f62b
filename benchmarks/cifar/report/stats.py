"""Differences between runs of one seed, and when they are large enough to claim an order.

Runs of one seed share the order and the augmentation of the images, and networks of one shape their
initial weights too, so their difference varies less than either accuracy.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.cifar.methods import DENSE, RECIPES, SMALL_DENSE, Recipe
from benchmarks.cifar.report.results import Group, Variant, percent, table_of
from benchmarks.cifar.report.texts import note
from benchmarks.common.tables import MISSING

CONFIDENCE = 0.95
# Densities that were chosen for equal FLOPs meet them to within the rounding of live counts.
EQUAL_FLOPS = 0.02
#: What a variant of a group is compared with.
Reference = Callable[[Group, Variant], Variant]


@dataclass(frozen=True)
class Difference:
    """Test accuracy of one variant minus that of another."""

    variant: Variant
    reference: Variant
    by_seed: pd.Series

    @property
    def mean(self) -> float:
        return float(self.by_seed.mean())

    def percent(self) -> str:
        """Mean and deviation over the seeds, in points."""
        std = float(self.by_seed.std()) if len(self.by_seed) > 1 else None
        return percent(self.mean, std, sign=True)

    def each_seed(self) -> str:
        """The difference of every seed, in points."""
        return ", ".join(f"{100 * value:+.2f} ({seed})" for seed, value in self.by_seed.items())


def difference(group: Group, variant: Variant, reference: Variant) -> Difference | None:
    """The paired difference of two variants, or None if they have no seed in common."""
    if variant == reference or variant not in group or reference not in group:
        return None
    by_seed = (group.test.loc[variant] - group.test.loc[reference]).dropna()
    return None if by_seed.empty else Difference(variant, reference, by_seed)


class Spread:
    """How far from zero a mean difference has to be before it is called an order.

    That is the half width of the 95 % interval of the mean by Student's t. A few seeds say little
    about a deviation, so one is taken from all runs of the protocol together: what is left of their
    accuracies after the mean of their variant and that of their seed (a randomised block design,
    with the seeds as blocks). It is None where nothing is left, as with a single seed.
    """

    def __init__(self, group: Group) -> None:
        accuracies = group.test.stack().dropna()
        variants, seeds = (accuracies.index.get_level_values(level) for level in (0, 1))
        design = np.hstack([pd.get_dummies(pd.factorize(one)[0]) for one in (variants, seeds)])
        design = design.astype(float)
        means, _, rank, _ = np.linalg.lstsq(design, accuracies.to_numpy(), rcond=None)
        self.freedom = len(accuracies) - int(rank)
        squares = float(np.sum((accuracies.to_numpy() - design @ means) ** 2))
        self.deviation = math.sqrt(squares / self.freedom) if self.freedom else None

    def of(self, found: Difference) -> float | None:
        """Half width of the interval of a mean difference; None without a deviation."""
        if self.deviation is None:
            return None
        factor = float(stats.t.ppf((1 + CONFIDENCE) / 2, self.freedom))
        return factor * self.deviation * math.sqrt(2 / len(found.by_seed))

    def claims(self, found: Difference) -> bool:
        """Whether the difference is one of several seeds and beyond the spread."""
        width = self.of(found)
        return width is not None and len(found.by_seed) > 1 and abs(found.mean) > width

    def order(self, found: Difference | None) -> str:
        """Which of the two is ahead, or ``open``."""
        if found is None:
            return MISSING
        if not self.claims(found):
            return "open"
        return "ahead" if found.mean > 0 else "behind"

    def explanation(self) -> list[str]:
        """What the tables of differences say, and from which deviation."""
        if self.deviation is None:
            return [*note("differences"), *note("no_deviation")]
        points = 100 * self.deviation
        return [*note("differences"), *note("deviation", points=points, freedom=self.freedom)]


def difference_table(group: Group, differences: Sequence[Difference]) -> list[str]:
    """One row for each difference, with the order that may be claimed."""
    spread = Spread(group)
    rows = []
    for found in differences:
        width = spread.of(found)
        rows.append(
            found.variant.cells
            | {
                "minus": found.reference.label,
                "difference, points": found.percent(),
                "spread": MISSING if width is None else f"{100 * width:.2f}",
                "order": spread.order(found),
                "each (seed)": found.each_seed(),
            }
        )
    return table_of(rows)


def all_differences(group: Group) -> list[str]:
    """A table for each of the references."""
    lines = []
    for heading, reference_of in REFERENCES.items():
        pairs = ((variant, reference_of(group, variant)) for variant in group.variants)
        found = [one for pair in pairs if (one := difference(group, *pair))]
        if found:
            lines += [f"#### {heading}", "", *difference_table(group, found)]
    return [*Spread(group).explanation(), *lines] if lines else []


def _minus(method: str, *, init: bool = True) -> Reference:
    """The one of a method at the same init, unless that has none, and the same density."""
    return lambda _, variant: Variant(method, variant.init if init else None, variant.density)


def _origin(_: Group, variant: Variant) -> Variant:
    recipe = RECIPES.get(variant.method, Recipe())
    return dataclasses.replace(variant, method=recipe.masks_from or variant.method)


def _uniform(_: Group, variant: Variant) -> Variant:
    return dataclasses.replace(variant, init="uniform") if variant.init == "erk" else variant


def _uniform_of_equal_flops(group: Group, variant: Variant) -> Variant:
    for other in group.variants:
        if (variant.init, other.name, other.init) == ("erk", variant.name, "uniform"):
            ratio = group.inference_flops(other) / group.inference_flops(variant)
            if abs(ratio - 1) < EQUAL_FLOPS:
                return other
    return variant


#: From what each variant's accuracy is taken, by the table's heading; itself for no difference.
REFERENCES: dict[str, Reference] = {
    "Minus Static": _minus("static"),
    "Minus Small-Dense": _minus(SMALL_DENSE, init=False),
    "Minus SET": _minus("set"),
    "Minus RigL": _minus("rigl"),
    "Minus Dense": lambda *_: Variant(DENSE, None, None),
    "Minus the run that the masks are from": _origin,
    "ERK minus uniform, same method and density": _uniform,
    "ERK minus uniform, same method and inference FLOPs": _uniform_of_equal_flops,
}
