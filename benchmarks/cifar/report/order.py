"""The methods in the paper's order and in the order of our results."""

from __future__ import annotations

import itertools

import pandas as pd
from scipy import stats

from benchmarks.cifar.report.paper import Paper, Published
from benchmarks.cifar.report.results import Group, Variant
from benchmarks.cifar.report.stats import difference
from benchmarks.cifar.report.texts import note
from benchmarks.common.tables import MISSING, table_of
from benchmarks.common.words import counted


class Order:
    """The variants of one density in the paper's order and in the order of our results.

    Attributes:
        rows: The variants that were published and run here, of one protocol and one set of authors,
            the best of the paper first.
        means: Our means over the seeds that all variants have; empty if there is no such seed,
            because means over different seeds can't be compared.
    """

    def __init__(self, group: Group, paper: Paper, density: float) -> None:
        self.group, self.paper, self.density = group, paper, density
        found: dict[Published, Variant] = {}
        variants = [one for one in group.variants if one.density == density]
        # A number published without an init counts once, for uniform if it was run: the report's
        # networks were pruned as uniform prunes them.
        for variant in sorted(variants, key=lambda one: one.init == "uniform"):
            published = [one for one in paper.of(variant) if one not in paper.original_authors]
            found |= dict.fromkeys(published[:1], variant)
        pairs = ((variant, one) for one, variant in found.items())
        self.rows = sorted(pairs, key=lambda row: (-row[1].accuracy, row[0]))
        shared = group.test.loc[[variant for variant, _ in self.rows]].dropna(axis="columns")
        self.means = shared.mean(axis="columns") if len(shared.columns) else pd.Series(dtype=float)

    def table(self) -> list[str]:
        """Each method's place in the paper and here, and its distance from the dense network."""
        theirs = next(row.accuracy for row in self.paper.main if row.variant.method == "dense")
        published = pd.Series([-one.accuracy for _, one in self.rows], dtype=float)
        place, places = published.rank(method="min"), self.means.rank(method="min", ascending=False)
        dense, rows = self.group.dense(), []
        for number, (variant, one) in enumerate(self.rows):
            gap = None if dense is None else difference(self.group, variant, dense)
            rows.append(
                {
                    "method": variant.cells["method"],
                    "init": variant.cells["init"],
                    "place in the paper": f"{place[number]:.0f}",
                    "place here": f"{places[variant]:.0f}" if len(places) else MISSING,
                    "points from Dense in the paper": f"{one.accuracy - theirs:+}",
                    "points from Dense here": MISSING if gap is None else f"{100 * gap.mean:+.2f}",
                }
            )
        return table_of(rows)

    def words(self) -> list[str]:
        """How many pairs with a common seed are in the paper's order, and which pairs are not.

        A pair counts if the paper's bands of one deviation do not overlap, and if our difference is
        beyond its spread.
        """
        pairs = agreeing = 0
        beaten: dict[str, list[str]] = {}
        for (better, high), (worse, low) in itertools.combinations(self.rows, 2):
            found = difference(self.group, better, worse)
            pairs += found is not None
            if found is None or high.std is None or low.std is None or not found.is_claimed:
                continue
            if high.accuracy - low.accuracy > high.std + low.std:
                agreeing += found.mean > 0
                if found.mean <= 0:
                    beaten.setdefault(worse.title, []).append(better.title)
        decided = agreeing + sum(map(len, beaten.values()))
        (text, _) = note("pairs", pairs=counted(pairs, "pair"), decided=decided, agreeing=agreeing)
        if beaten:
            others = "; ".join(f"{ahead} above {', '.join(rest)}" for ahead, rest in beaten.items())
            text += f" In the other order here: {others}."
        if len(self.means):
            text += " The places rank the means over the seeds that all of them have."
        if len(self.rows) > 2 and len(self.means):
            theirs = [float(one.accuracy) for _, one in self.rows]
            tau = float(stats.kendalltau(theirs, list(self.means)).statistic)
            text += f" Kendall's tau of the two orders is {tau:.2f}."
        return [text, ""]


def orders(group: Group, paper: Paper | None) -> list[Order]:
    """One order for each density at which at least two variants were published and run."""
    if paper is None:
        return []
    densities = sorted({one.density for one in group.variants if one.density is not None})
    found = (Order(group, paper, density) for density in densities)
    return [order for order in found if len(order.rows) > 1]
