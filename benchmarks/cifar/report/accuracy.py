"""The tables of accuracies, with the published numbers and the paper's order beside ours."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
from scipy import stats

from benchmarks.cifar.methods import RECIPES
from benchmarks.cifar.report.paper import Paper, Published
from benchmarks.cifar.report.results import Group, Variant, multiple, title
from benchmarks.cifar.report.stats import Difference, Spread, against, difference, minus
from benchmarks.common.tables import MISSING, paragraph, table

REDISTRIBUTING = ("rigl-sg", "rigl-sm")


def main_table(group: Group, paper: Paper | None) -> list[str]:
    """Every variant: accuracy and FLOPs, ours and the paper's.

    Under the full protocol, published variants that have not been run yet have a row too.
    """
    variants = list(group.variants)
    if paper is not None and not group.protocol["reduced"]:
        variants = sorted([*variants, *paper.not_run(group)])
    return accuracy_table(group, variants, paper)


def accuracy_table(
    group: Group, variants: Sequence[Variant], paper: Paper | None, *, of_table: str = "main"
) -> list[str]:
    """Accuracy and FLOPs of the variants, beside the published numbers of one of the tables.

    Variants without results have published numbers only.
    """
    theirs = [] if paper is None else ["paper"]
    header = ["method", "init", "density", "seeds", "test %"]
    header += [] if paper is None else [paper_column(group), "difference", "inside the spread"]
    header += ["train FLOPs", *theirs, "test FLOPs", *theirs]
    rows = []
    for variant in variants:
        ran = variant in group
        row = [*variant.cells, group.seeds(variant), group.percent(variant)]
        train = multiple(group.training_flops(variant)) if ran else MISSING
        test = multiple(group.inference_flops(variant)) if ran else MISSING
        if paper is None:
            rows.append([*row, train, test])
            continue
        published = paper.of(variant, of_table=of_table)
        row += [_joined(map(str, published)), *_beside(group, variant, published)]
        row += [train, _joined(f"{one.train_flops}x" for one in published if one.train_flops)]
        row += [
            test,
            _joined(f"{one.inference_flops}x" for one in published if one.inference_flops),
        ]
        rows.append(row)
    return table(header, rows)


def main_notes(group: Group, paper: Paper | None) -> list[str]:
    """What the columns mean."""
    dense = f"{group.records[0]['flops']['dense_inference']:,.0f} FLOPs"
    if paper is not None and not group.protocol["reduced"]:
        dense += f" (paper: {paper.dense_inference_flops})"
    lines = paragraph(
        "Accuracy is the share of test images classified correctly after the last epoch, mean ± "
        "sample standard deviation over the seeds. FLOPs are multiples of the full dense network's "
        "by the methods' formulas: of the whole training, with its length and with that of the run "
        "that masks came from, and of an inference. An inference of the dense network costs "
        f"{dense}."
    )
    if paper is None:
        return lines
    lines += paragraph(
        f"Published: {paper.protocol}; the letters name the sources at the end. A difference is "
        "ours minus the published one, and inside the spread where the two bands of mean ± "
        "deviation overlap; without a deviation on both sides nothing is said. Pruning and Lottery "
        "are published without an init: over all layers together, but for a dense first layer, as "
        "with uniform here. With ERK the first layer is pruned too."
    )
    if group.protocol["reduced"] and (missing := paper.not_run(group)):
        listed = ", ".join(variant.label for variant in missing)
        lines += paragraph(f"Published, and not run by this reduced protocol: {listed}.")
    return lines


def redistribution(group: Group, paper: Paper | None) -> list[str]:
    """RigL beside its variants that move weights between layers."""
    moving = [variant for variant in group.variants if variant.method in REDISTRIBUTING]
    if not moving:
        return []
    rows = group.beside(moving, ["rigl"])
    lines = accuracy_table(group, rows, paper, of_table="redistribution")
    if paper is not None:
        lines += paragraph(
            "RigL-SG moves weights between layers by their gradients, RigL-SM by their momentum. "
            f"Their FLOPs in the paper: {paper.redistribution_flops}."
        )
    return [*lines, *minus(group, "RigL", against(group, moving, "rigl"))]


def tickets(group: Group, paper: Paper | None) -> list[str]:
    """Runs on the final masks of another run, beside that run and beside random masks."""
    sources = {name: one.masks_from for name, one in RECIPES.items() if one.masks_from}
    made = [variant for variant in group.variants if variant.method in sources]
    if not made:
        return []
    origins = list(dict.fromkeys(sources[variant.method] for variant in made))
    lines = accuracy_table(group, group.beside(made, [*origins, "static", "rigl"]), paper)
    words = "; ".join(
        f"{title(method)} starts with the final masks of {title(sources[method])}"
        for method in dict.fromkeys(variant.method for variant in made)
    )
    lines += paragraph(f"{words}. Their training FLOPs include those of that run.")
    for origin in origins:
        own = [variant for variant in made if sources[variant.method] == origin]
        lines += minus(group, title(origin), against(group, own, origin))
    return [*lines, *minus(group, "Static", against(group, made, "static"))]


def paper_column(group: Group) -> str:
    """Heading of the published accuracies."""
    return "paper %, full protocol" if group.protocol["reduced"] else "paper %"


def _beside(group: Group, variant: Variant, published: Sequence[Published]) -> list[str]:
    if variant not in group:
        return [MISSING, MISSING]
    mean, std = group.mean(variant, "test"), group.std(variant)
    differences = (f"{100 * mean - float(one.accuracy):+.2f}" for one in published)
    return [_joined(differences), _joined(one.is_near(mean, std) for one in published)]


def _joined(cells: Iterable[str]) -> str:
    return "; ".join(cells) or MISSING


@dataclass(frozen=True)
class Order:
    """The variants of one density in the paper's order and in ours."""

    density: float
    # The best in the paper first.
    rows: list[tuple[Variant, Published]]
    # Every two that share a seed, the one that the paper has ahead minus the other, and whether the
    # paper's bands of one deviation don't overlap.
    pairs: list[tuple[Difference, bool]]
    # Over the seeds that all have; empty where there is none, since others don't compare.
    means: pd.Series


def orders(group: Group, paper: Paper) -> list[Order]:
    """One order for each density at which two variants or more have been published and run."""
    densities = sorted({v.density for v in group.variants if v.density is not None})
    found = [_order(group, paper, density) for density in densities]
    return [order for order in found if len(order.rows) > 1]


def order_table(group: Group, paper: Paper, order: Order) -> list[str]:
    """Each method's place in the paper and here, and its distance from the dense network."""
    theirs = next(row.accuracy for row in paper.main if row.variant.method == "dense")
    dense, rows = group.dense(), []
    published_places = pd.Series([-one.accuracy for _, one in order.rows], dtype=float).rank(
        method="min"
    )
    places = order.means.rank(method="min", ascending=False)
    for (variant, published), place in zip(order.rows, published_places, strict=True):
        gap = None if dense is None else difference(group, variant, dense)
        rows.append(
            [
                *variant.cells[:2],
                f"{place:.0f}",
                f"{places[variant]:.0f}" if len(places) else MISSING,
                f"{published.accuracy - theirs:+}",
                MISSING if gap is None else f"{100 * gap.mean:+.2f}",
            ]
        )
    header = ["method", "init", "place in the paper", "place here"]
    header += ["points from Dense in the paper", "points from Dense here"]
    return table(header, rows)


def order_words(group: Group, order: Order) -> list[str]:
    """How many pairs of methods are in the paper's order, and which are not."""
    spread = Spread(group)
    decided = [one for one, apart in order.pairs if apart and spread.claims(one)]
    # Each method that is above others here and below them in the paper, once.
    beaten: dict[str, list[str]] = {}
    for one in decided:
        if one.mean <= 0:
            beaten.setdefault(one.reference.title, []).append(one.variant.title)
    agreeing = sum(one.mean > 0 for one in decided)
    text = (
        f"Of {len(order.pairs)} pairs of methods that share a seed, {len(decided)} are apart "
        f"beyond the spread both in the paper and here; of these {agreeing} are in the paper's "
        "order."
    )
    if beaten:
        others = "; ".join(f"{ahead} above {', '.join(rest)}" for ahead, rest in beaten.items())
        text += f" In the other order here: {others}."
    if len(order.means):
        text += " Places are by means over the seeds that all of them have."
    if len(order.rows) > 2 and len(order.means):
        theirs = [float(one.accuracy) for _, one in order.rows]
        tau = float(stats.kendalltau(theirs, list(order.means)).statistic)
        text += f" Kendall's tau of the two orders is {tau:.2f}."
    return paragraph(text)


def order_tables(group: Group, paper: Paper | None) -> list[str]:
    """How the methods' order compares with the paper's, one table for each density."""
    if paper is None:
        return []
    lines = []
    for order in orders(group, paper):
        lines += [f"#### Density {order.density:.3g}", "", *order_table(group, paper, order)]
        lines += order_words(group, order)
    return lines


def _order(group: Group, paper: Paper, density: float) -> Order:
    rows = []
    for variant in group.variants:
        # One protocol and one set of authors.
        published = [row for row in paper.of(variant) if row not in paper.original_authors]
        if variant.density == density and published:
            rows.append((variant, published[0]))
    rows.sort(key=lambda row: -row[1].accuracy)
    pairs = []
    for (better, high), (worse, low) in itertools.combinations(rows, 2):
        found = difference(group, better, worse)
        if found is not None:
            stds = high.std, low.std
            apart = None not in stds and high.accuracy - low.accuracy > sum(stds)  # type: ignore[arg-type]
            pairs.append((found, apart))
    shared = group.test.loc[[variant for variant, _ in rows]].dropna(axis="columns")
    means = shared.mean(axis="columns") if len(shared.columns) else pd.Series(dtype=float)
    return Order(density, rows, pairs, means)
