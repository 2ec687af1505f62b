"""Tables of paired differences: who is ahead of whom, and whether that may be said."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.cifar.protocols.methods import RECIPES
from benchmarks.cifar.report.comparison import Difference, Spread, against, difference
from benchmarks.cifar.report.markdown import names
from benchmarks.cifar.report.summary import Group, Variant, title
from benchmarks.common.tables import MISSING, paragraph, table

REFERENCES = ("static", "small-dense", "set", "dense")

EXPLANATION = (
    "Runs of one seed see the same images in the same order, so differences are taken seed by "
    "seed. An order (ahead, behind) is claimed only of two seeds or more, and only where the mean "
    "difference is beyond its spread, the half width of its 95 % interval by Student's t; all "
    "else is open. "
)


def explanation(group: Group) -> str:
    """What the tables of differences say, and from which deviation."""
    spread = Spread(group)
    if spread.deviation is None:
        return EXPLANATION + "These results, of a single seed, give no deviation."
    return EXPLANATION + (
        f"The deviation of one run, {100 * spread.deviation:.2f} points, is taken from all runs of "
        f"this protocol, after the means of their variants and of their seeds ({spread.freedom} "
        "degrees of freedom)."
    )


def difference_table(group: Group, differences: Sequence[Difference]) -> list[str]:
    """One row for each difference, with the order that may be claimed."""
    spread = Spread(group)
    rows = []
    for found in differences:
        width = spread.of(found)
        rows.append(
            [
                *names(found.variant),
                found.statistic.percent(sign=True),
                MISSING if width is None else f"{100 * width:.2f}",
                order_of(found, spread),
                each_seed(found),
            ]
        )
    header = ["method", "init", "density", "difference, points", "spread", "order", "each (seed)"]
    return table(header, rows)


def each_seed(found: Difference) -> str:
    """The difference of every seed, in points."""
    return ", ".join(f"{100 * value:+.2f} ({seed})" for seed, value in found.by_seed.items())


def order_of(found: Difference, spread: Spread) -> str:
    """Which of the two is ahead, or ``open``."""
    if not spread.claims(found):
        return "open"
    return "ahead" if found.statistic.mean > 0 else "behind"


def all_differences(group: Group) -> list[str]:
    """Differences from each of the reference methods, and of ERK from uniform."""
    tables = {f"Minus {title(name)}": _from(group, name) for name in REFERENCES}
    tables["ERK minus uniform, same method and density"] = _erk_minus_uniform(group)
    tables["Longer training minus the usual length"] = _longer(group)
    lines = []
    for heading, found in tables.items():
        if found:
            lines += [f"#### {heading}", "", *difference_table(group, found)]
    return [*paragraph(explanation(group)), *lines] if lines else []


def _from(group: Group, reference: str) -> list[Difference]:
    if reference == "dense":
        dense = Variant("dense", None, None)
        found = [difference(group, variant, dense) for variant in group.variants]
        return [one for one in found if one is not None]
    has_init = reference != "small-dense"
    variants = [
        v for v in group.variants if v.method not in ("dense", reference) and v.density is not None
    ]
    return against(group, variants, reference, init=has_init)


def _erk_minus_uniform(group: Group) -> list[Difference]:
    found = [
        difference(group, variant, Variant(variant.method, "uniform", variant.density))
        for variant in group.variants
        if variant.init == "erk"
    ]
    return [one for one in found if one is not None]


def _longer(group: Group) -> list[Difference]:
    found = []
    for method, recipe in RECIPES.items():
        if recipe.length > 1 and recipe.optimizer is not None:
            variants = [variant for variant in group.variants if variant.method == method]
            found += against(group, variants, recipe.optimizer)
    return found
