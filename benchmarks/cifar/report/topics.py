"""The report's sections about one question each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.cifar.methods import RECIPES
from benchmarks.cifar.paper import Paper
from benchmarks.cifar.report.accuracy import accuracy_table
from benchmarks.cifar.report.comparison import Difference, against
from benchmarks.cifar.report.differences import difference_table
from benchmarks.cifar.report.markdown import paragraph, table
from benchmarks.cifar.summary import Group, Variant, title

REDISTRIBUTING = ("rigl-sg", "rigl-sm")
STRUCTURED = "rigl-struct"
# Densities that were chosen for equal FLOPs meet them to within the rounding of live counts.
EQUAL = 0.02


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


def structured(group: Group, paper: Paper | None) -> list[str]:
    """Whole channels beside single weights; nothing where no such method has been run."""
    channels = [variant for variant in group.variants if variant.method == STRUCTURED]
    if not channels:
        return []
    rows = _with(group, channels, ["rigl", "small-dense"])
    lines = accuracy_table(group, rows, paper, of_table="structured")
    return [*lines, *_minus(group, against(group, channels, "rigl"), "RigL")]


@dataclass(frozen=True)
class EqualFlops:
    """Two distributions at the same inference FLOPs.

    Attributes:
        method: The method.
        flops: Multiple of the dense network's.
        measured: The variant that was run there.
        accuracy: Its mean test accuracy.
        other: Mean test accuracy of the other distribution at these FLOPs.
        other_name: Density at which that was run, or between which it is interpolated.
    """

    method: str
    flops: float
    measured: Variant
    accuracy: float
    other: float
    other_name: str


def equal_flops(group: Group) -> list[EqualFlops]:
    """Every variant with a distribution, where the other one is known at its FLOPs.

    That is so where the other was run at the same FLOPs, or at fewer and at more: then its accuracy
    is interpolated linearly over the logarithm of the FLOPs.
    """
    found = []
    others = {"erk": "uniform", "uniform": "erk"}
    for variant in group.variants:
        if variant.init not in others:
            continue
        other = others[variant.init]
        line = [v for v in group.variants if (v.method, v.init) == (variant.method, other)]
        flops = group.inference_flops(variant)
        at_flops = _at(group, line, flops)
        if at_flops is not None:
            mean = group.statistic(variant, "accuracy", "test").mean
            found.append(EqualFlops(variant.method, flops, variant, mean, *at_flops))
    return found


def equal_flops_table(comparisons: Sequence[EqualFlops]) -> list[str]:
    """ERK and uniform side by side, whichever of the two was run at these FLOPs."""
    rows = []
    for one in sorted(comparisons, key=lambda one: (one.measured.order()[2], one.flops)):
        own, other = (f"{100 * one.accuracy:.2f}", f"{100 * one.other:.2f} at {one.other_name}")
        own += f" at {one.measured.density:.3g}"
        is_erk = one.measured.init == "erk"
        erk_ahead = 100 * (one.accuracy - one.other) * (1 if is_erk else -1)
        rows.append(
            [
                title(one.method),
                f"{one.flops:.3f}x",
                own if is_erk else other,
                other if is_erk else own,
                f"{erk_ahead:+.2f}",
            ]
        )
    header = ["method", "inference FLOPs", "ERK, test % at density"]
    header += ["uniform, test % at density", "ERK minus uniform, points"]
    return table(header, rows)


def _at(group: Group, line: Sequence[Variant], flops: float) -> tuple[float, str] | None:
    points = sorted(
        (group.inference_flops(v), group.statistic(v, "accuracy", "test").mean, v.density or 0.0)
        for v in line
    )
    for place, accuracy, density in points:
        if abs(place / flops - 1) < EQUAL:
            return accuracy, f"{density:.3g}"
    below = [point for point in points if point[0] < flops]
    above = [point for point in points if point[0] > flops]
    if not below or not above:
        return None
    ends = (below[-1], above[0])
    places = np.log([place for place, _, _ in ends])
    accuracy = float(np.interp(np.log(flops), places, [value for _, value, _ in ends]))
    return accuracy, f"{ends[0][2]:.3g} to {ends[1][2]:.3g}, interpolated"


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
