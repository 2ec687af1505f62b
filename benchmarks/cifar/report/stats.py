"""Differences between runs of one seed, and when they are large enough to claim an order.

Runs of one seed share the order and the augmentation of the images, and networks of one shape their
initial weights too, so their difference varies less than either accuracy.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.cifar.methods import DENSE, RECIPES, SMALL_DENSE
from benchmarks.cifar.report.results import Group, Variant, percent
from benchmarks.common.tables import MISSING, paragraph, table

CONFIDENCE = 0.95
EXPLANATION = (
    "Runs of one seed see the same images in the same order, so differences are taken seed by "
    "seed. An order (ahead, behind) is claimed only of two seeds or more, and only where the mean "
    "difference is beyond its spread, the half width of its 95 % interval by Student's t; all "
    "else is open. "
)


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


def against(
    group: Group, variants: Sequence[Variant], method: str, *, init: bool = True
) -> list[Difference]:
    """Differences of variants from one method at the same density."""
    found = [
        difference(group, variant, Variant(method, variant.init if init else None, variant.density))
        for variant in variants
    ]
    return [one for one in found if one is not None]


class Spread:
    """How far from zero a mean difference has to be before it is called an order.

    That is the half width of the 95 % interval of the mean by Student's t. A few seeds say little
    about a deviation, so one is taken from all runs of the protocol together: what is left of their
    accuracies after the mean of their variant and that of their seed (a randomised block design,
    with the seeds as blocks).

    Args:
        group: All results of the protocol.

    Attributes:
        deviation: Standard deviation of one run; None where nothing is left to take it from, as
            with a single seed.
        freedom: Degrees of freedom of the deviation.
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

    def explanation(self) -> str:
        """What the tables of differences say, and from which deviation."""
        if self.deviation is None:
            return EXPLANATION + "These results, of a single seed, give no deviation."
        return EXPLANATION + (
            f"The deviation of one run, {100 * self.deviation:.2f} points, is taken from all runs "
            "of this protocol, after the means of their variants and of their seeds "
            f"({self.freedom} degrees of freedom)."
        )


def difference_table(group: Group, differences: Sequence[Difference]) -> list[str]:
    """One row for each difference, with the order that may be claimed."""
    spread = Spread(group)
    rows = []
    for found in differences:
        width = spread.of(found)
        shown = MISSING if width is None else f"{100 * width:.2f}"
        row = [*found.variant.cells, found.percent(), shown, spread.order(found)]
        rows.append([*row, found.each_seed()])
    header = ["method", "init", "density", "difference, points", "spread", "order", "each (seed)"]
    return table(header, rows)


def minus(group: Group, reference: str, differences: Sequence[Difference]) -> list[str]:
    """The table below a heading; nothing where there are no differences."""
    rows = difference_table(group, differences)
    return [f"#### Minus {reference}", "", *rows] if rows else []


def all_differences(group: Group) -> list[str]:
    """Differences from each of the reference methods, of ERK from uniform, and of lengths."""
    masked = [v for v in group.variants if v.density is not None]
    dense = Variant(DENSE, None, None)
    erk = [v for v in group.variants if v.init == "erk"]
    longer = [
        one
        for method, recipe in RECIPES.items()
        if recipe.length > 1 and recipe.optimizer is not None
        for one in against(
            group, [v for v in group.variants if v.method == method], recipe.optimizer
        )
    ]
    tables = {
        "Minus Static": against(group, masked, "static"),
        "Minus Small-Dense": against(group, masked, SMALL_DENSE, init=False),
        "Minus SET": against(group, masked, "set"),
        "Minus Dense": [one for v in group.variants if (one := difference(group, v, dense))],
        "ERK minus uniform, same method and density": [
            one
            for variant in erk
            if (one := difference(group, variant, dataclasses.replace(variant, init="uniform")))
        ],
        "Longer training minus the usual length": longer,
    }
    lines = []
    for heading, found in tables.items():
        if found:
            lines += [f"#### {heading}", "", *difference_table(group, found)]
    return [*paragraph(Spread(group).explanation()), *lines] if lines else []
