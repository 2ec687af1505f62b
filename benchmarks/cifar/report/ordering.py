"""Whether the methods come in the paper's order."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from scipy import stats

from benchmarks.cifar.report.comparison import Difference, Spread, difference
from benchmarks.cifar.report.paper import Paper, Published
from benchmarks.cifar.report.summary import Group, Variant


@dataclass(frozen=True)
class Pair:
    """Two variants of one density that have been published and run.

    Attributes:
        better: Which of the two the paper has ahead, or the first where they are equal there.
        worse: The other one.
        published: How far ahead in the paper, in points.
        published_claims: Whether the paper's bands of one deviation don't overlap.
        ours: ``better`` minus ``worse`` here, paired by seed.
        ours_claims: Whether that is beyond the spread.
    """

    better: Variant
    worse: Variant
    published: float
    published_claims: bool
    ours: Difference
    ours_claims: bool

    @property
    def agrees(self) -> bool:
        """Whether the same one is ahead here."""
        return self.ours.statistic.mean > 0


@dataclass(frozen=True)
class Order:
    """The variants of one density in both orders.

    Attributes:
        density: The density.
        rows: Variants with their published number, in the paper's order, the best first.
        pairs: Every two of them that share a seed.
        means: The mean test accuracy of each over the seeds that all of them have; empty where
            there is none, since means over other seeds don't compare.
    """

    density: float
    rows: list[tuple[Variant, Published]]
    pairs: list[Pair]
    means: dict[Variant, float]

    @property
    def tau(self) -> float | None:
        """Kendall's rank correlation (tau-b) of the two orders; None of fewer than three."""
        if len(self.rows) < 3 or not self.means:
            return None
        theirs = [float(row.accuracy) for _, row in self.rows]
        ours = [self.means[variant] for variant, _ in self.rows]
        return float(stats.kendalltau(theirs, ours).statistic)


def orders(group: Group, paper: Paper) -> list[Order]:
    """One order for each density at which two variants or more have been published and run."""
    densities = sorted({v.density for v in group.variants if v.density is not None})
    found = [_order(group, paper, density) for density in densities]
    return [order for order in found if len(order.rows) > 1]


def _order(group: Group, paper: Paper, density: float) -> Order:
    rows = []
    for variant in group.variants:
        # One protocol and one set of authors.
        published = [row for row in paper.of(variant) if row not in paper.original_authors]
        if variant.density == density and published:
            rows.append((variant, published[0]))
    rows.sort(key=lambda row: -row[1].accuracy)
    means = means_over_shared_seeds(group, [variant for variant, _ in rows])
    return Order(density, rows, _pairs(group, rows), means)


def means_over_shared_seeds(group: Group, variants: Sequence[Variant]) -> dict[Variant, float]:
    """The mean test accuracy of each variant over the seeds that all have; empty without any."""
    runs = {variant: group.runs(variant) for variant in variants}
    shared = set.intersection(*(set(by_seed) for by_seed in runs.values())) if runs else set()
    if not shared:
        return {}
    return {
        variant: fmean(by_seed[seed]["accuracy"]["test"] for seed in shared)
        for variant, by_seed in runs.items()
    }


def _pairs(group: Group, rows: list[tuple[Variant, Published]]) -> list[Pair]:
    found = []
    for (better, high), (worse, low) in itertools.combinations(rows, 2):
        ours = difference(group, better, worse)
        if ours is not None:
            found.append((ours, high, low))
    spread = Spread(group)
    return [
        Pair(
            ours.variant,
            ours.reference,
            float(high.accuracy - low.accuracy),
            _apart(high, low),
            ours,
            spread.claims(ours),
        )
        for ours, high, low in found
    ]


def _apart(high: Published, low: Published) -> bool:
    if high.std is None or low.std is None:
        return False
    return high.accuracy - low.accuracy > high.std + low.std
