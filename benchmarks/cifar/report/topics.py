"""The report's sections about one question each."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.cifar.protocols.methods import RECIPES
from benchmarks.cifar.report.accuracy import accuracy_table
from benchmarks.cifar.report.comparison import Difference, against
from benchmarks.cifar.report.differences import difference_table
from benchmarks.cifar.report.paper import Paper
from benchmarks.cifar.report.summary import Group, Variant, title
from benchmarks.common.tables import paragraph

REDISTRIBUTING = ("rigl-sg", "rigl-sm")


def redistribution(group: Group, paper: Paper | None) -> list[str]:
    """RigL beside its variants that move weights between layers."""
    moving = [variant for variant in group.variants if variant.method in REDISTRIBUTING]
    if not moving:
        return []
    rows = _with(group, moving, ["rigl"])
    lines = accuracy_table(group, rows, paper, of_table="redistribution")
    if paper is not None:
        lines += paragraph(
            "RigL-SG moves weights between layers by their gradients, RigL-SM by their momentum. "
            f"Their FLOPs in the paper: {paper.redistribution_flops}."
        )
    return [*lines, *_minus(group, against(group, moving, "rigl"), "RigL")]


def tickets(group: Group, paper: Paper | None) -> list[str]:
    """Runs on the final masks of another run, beside that run and beside random masks."""
    made = [v for v in group.variants if _masks_from(v) is not None]
    if not made:
        return []
    origins = dict.fromkeys(_masks_from(variant) or "" for variant in made)
    lines = accuracy_table(group, _with(group, made, [*origins, "static", "rigl"]), paper)
    words = "; ".join(
        f"{title(method)} starts with the final masks of {title(_masks_from_method(method))}"
        for method in dict.fromkeys(variant.method for variant in made)
    )
    lines += paragraph(f"{words}. Their training FLOPs include those of that run.")
    for origin in origins:
        own = [variant for variant in made if _masks_from(variant) == origin]
        lines += _minus(group, against(group, own, origin), title(origin))
    return [*lines, *_minus(group, against(group, made, "static"), "Static")]


def _with(group: Group, variants: Sequence[Variant], methods: Sequence[str]) -> list[Variant]:
    """The variants and those of other methods at the same densities, in their usual order."""
    places = {(variant.init, variant.density) for variant in variants}
    places |= {(None, density) for _, density in places}
    others = [v for v in group.variants if v.method in methods and (v.init, v.density) in places]
    return sorted({*variants, *others}, key=Variant.order)


def _minus(group: Group, differences: Sequence[Difference], reference: str) -> list[str]:
    if not differences:
        return []
    return [f"#### Minus {reference}", "", *difference_table(group, differences)]


def _masks_from(variant: Variant) -> str | None:
    return _masks_from_method(variant.method)


def _masks_from_method(method: str) -> str | None:
    return RECIPES[method].masks_from if method in RECIPES else None
