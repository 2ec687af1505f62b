"""Differences between runs of one seed, and when they are large enough to claim an order.

Runs of one seed share the order and the augmentation of the images, and networks of one shape their
initial weights too, so their difference varies less than either accuracy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from benchmarks.cifar.report.paper import Published
from benchmarks.cifar.report.summary import Group, Statistic, Variant

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Difference:
    """Test accuracy of one variant minus that of another, seed by seed.

    Attributes:
        variant: Whose accuracy is the minuend.
        reference: Whose is the subtrahend.
        by_seed: A difference for every seed that both have; never empty.
    """

    variant: Variant
    reference: Variant
    by_seed: dict[int, float]

    @property
    def statistic(self) -> Statistic:
        """Mean and deviation over the seeds."""
        return Statistic(tuple(self.by_seed.values()))


def difference(group: Group, variant: Variant, reference: Variant) -> Difference | None:
    """The paired difference of two variants, or None if they have no seed in common."""
    minuends, subtrahends = group.runs(variant), group.runs(reference)
    shared = sorted(minuends.keys() & subtrahends.keys())
    if variant == reference or not shared:
        return None
    return Difference(
        variant,
        reference,
        {seed: _test(minuends[seed]) - _test(subtrahends[seed]) for seed in shared},
    )


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
        runs = [
            (variant, seed, _test(record))
            for variant, by_seed in [*group.variants.items(), *group.varied.items()]
            for seed, record in by_seed.items()
        ]
        columns = {name: None for variant, seed, _ in runs for name in (variant, seed)}
        place = {name: index for index, name in enumerate(columns)}
        design = np.zeros((len(runs), len(place)))
        for row, (variant, seed, _) in enumerate(runs):
            design[row, [place[variant], place[seed]]] = 1.0
        accuracies = np.array([accuracy for _, _, accuracy in runs])
        means, _, rank, _ = np.linalg.lstsq(design, accuracies, rcond=None)
        self.freedom = len(runs) - int(rank)
        squares = float(np.sum((accuracies - design @ means) ** 2))
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
        return (
            width is not None
            and found.statistic.std is not None
            and (abs(found.statistic.mean) > width)
        )


def inside(published: Published, ours: Statistic) -> bool | None:
    """Whether the bands of one deviation around two means overlap.

    Args:
        published: The other mean, in percent.
        ours: Shares, a value a seed.

    Returns:
        None where a deviation is missing: not published, or a single seed.
    """
    if published.std is None or ours.std is None:
        return None
    distance = abs(100 * ours.mean - float(published.accuracy))
    return distance <= float(published.std) + 100 * ours.std


def against(
    group: Group, variants: Sequence[Variant], method: str, *, init: bool = True
) -> list[Difference]:
    """Differences of variants from one method at the same density.

    Args:
        group: The results.
        variants: Whose differences; those that have no counterpart are left out.
        method: The reference.
        init: Whether the reference has the variant's init, or none.
    """
    found = [
        difference(group, variant, Variant(method, variant.init if init else None, variant.density))
        for variant in variants
    ]
    return [one for one in found if one is not None]


def _test(record: dict[str, dict[str, float]]) -> float:
    return float(record["accuracy"]["test"])
