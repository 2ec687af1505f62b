"""Differences between runs of the same seed, and whether they show which method is ahead.

Runs of the same seed share the order and the augmentation of the images, and networks of the same
shape also share their initial weights. So their difference varies less than either accuracy.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from scipy import stats

from benchmarks.cifar.methods import DENSE, SMALL_DENSE
from benchmarks.cifar.report.results import Group, Variant, percent
from benchmarks.cifar.report.texts import note
from benchmarks.common.tables import MISSING, table_of
from benchmarks.common.words import counted

CONFIDENCE = 0.95
# Densities chosen for equal FLOPs give equal FLOPs up to the rounding of live counts.
EQUAL_FLOPS = 0.02
#: The variant with which a variant of a group is compared.
Reference = Callable[[Group, Variant], Variant]


@dataclass(frozen=True)
class Difference:
    """Test accuracy of one variant minus the test accuracy of another.

    Attributes:
        spread: The half width of the 95 % interval of the mean, by Student's t. A mean is claimed
            if it is further from zero than the spread. None if the deviation is not known.
    """

    variant: Variant
    reference: Variant
    by_seed: pd.Series
    spread: float | None

    @property
    def mean(self) -> float:
        return float(self.by_seed.mean())

    @property
    def is_claimed(self) -> bool:
        """Whether the difference comes from several seeds and is larger than the spread."""
        several = len(self.by_seed) > 1
        return several and self.spread is not None and abs(self.mean) > self.spread

    @property
    def order(self) -> str:
        """Which of the two is ahead, or ``open``."""
        if not self.is_claimed:
            return "open"
        return "ahead" if self.mean > 0 else "behind"

    def __str__(self) -> str:
        """Mean and deviation over the seeds, in points."""
        std = float(self.by_seed.std()) if len(self.by_seed) > 1 else None
        return percent(self.mean, std, sign=True)


def difference(group: Group, variant: Variant, reference: Variant) -> Difference | None:
    """The paired difference of two variants, or None if they have no seed in common."""
    if variant == reference or variant not in group or reference not in group:
        return None
    by_seed = (group.test.loc[variant] - group.test.loc[reference]).dropna()
    if by_seed.empty:
        return None
    spread = None
    if group.deviation is not None:
        factor = float(stats.t.ppf((1 + CONFIDENCE) / 2, group.freedom))
        spread = factor * group.deviation * math.sqrt(2 / len(by_seed))
    return Difference(variant, reference, by_seed, spread)


def difference_cells(found: Difference | None) -> dict[str, str]:
    """The table cells of a difference, if there is one."""
    names = ("difference, points", "spread", "order", "each (seed)")
    if found is None:
        return dict.fromkeys(names, MISSING)
    spread = MISSING if found.spread is None else f"{100 * found.spread:.2f}"
    each = ", ".join(f"{100 * value:+.2f} ({seed})" for seed, value in found.by_seed.items())
    return dict(zip(names, (str(found), spread, found.order, each), strict=True))


def all_differences(group: Group) -> list[str]:
    """A table for each of the references."""
    lines = []
    for heading, reference_of in REFERENCES.items():
        pairs = ((variant, reference_of(group, variant)) for variant in group.variants)
        rows = [
            found.variant.cells | {"minus": found.reference.label} | difference_cells(found)
            for pair in pairs
            if (found := difference(group, *pair))
        ]
        lines += [f"#### {heading}", "", *table_of(rows)] if rows else []
    if not lines:
        return []
    deviation = note("no_deviation")
    if group.deviation is not None:
        freedom = counted(group.freedom, "degree")
        deviation = note("deviation", points=100 * group.deviation, freedom=freedom)
    return [*note("differences"), *deviation, *lines]


def _minus(method: str, *, init: bool = True) -> Reference:
    """The variant of a method at the same density, and at the same init if the method has one."""
    return lambda _, variant: Variant(method, variant.init if init else None, variant.density)


def _origin(group: Group, variant: Variant) -> Variant:
    masks_from = group.recipe(variant).masks_from
    return dataclasses.replace(variant, method=masks_from or variant.method)


def _uniform(_: Group, variant: Variant) -> Variant:
    return dataclasses.replace(variant, init="uniform") if variant.init == "erk" else variant


def _uniform_of_equal_flops(group: Group, variant: Variant) -> Variant:
    for other in group.variants:
        if (variant.init, other.name, other.init) == ("erk", variant.name, "uniform"):
            ratio = group.inference_flops(other) / group.inference_flops(variant)
            if abs(ratio - 1) < EQUAL_FLOPS:
                return other
    return variant


#: By a table's heading, the function that returns the reference of a variant. If the variant has
#: no reference, the function returns the variant itself.
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
