"""Test accuracy by method, against density and against FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.cifar.report.figures.style import (
    LINES,
    MARKERS,
    color,
    label,
    legend_beside,
    log_axis,
    mean_and_error,
    new_figure,
    plain_log_axis,
)
from benchmarks.cifar.summary import Group, Variant

# Methods at one density would hide each other: their marks are spread over this factor.
DODGE = 1.25


def by_method(group: Group) -> Figure:
    """A mark for every seed and a line at the mean."""
    variants = list(group.variants)
    figure = new_figure(group, "Test accuracy", (7.5, 1.4 + 0.24 * len(variants)))
    axes = figure.subplots()
    for row, variant in enumerate(variants):
        accuracy = group.statistic(variant, "accuracy", "test")
        shade = color(variant.method)
        marks = [100 * value for value in accuracy.values]
        axes.plot(marks, [row] * len(marks), MARKERS[variant.init], color=shade, alpha=0.6)
        axes.plot([100 * accuracy.mean] * 2, [row - 0.35, row + 0.35], color=shade, linewidth=2)
    axes.set_yticks(range(len(variants)), [label(variant) for variant in variants])
    axes.invert_yaxis()
    axes.set_xlabel("test accuracy, % (a mark for each seed, a line at the mean)")
    axes.grid(axis="x", alpha=0.3)
    return figure


def against_density(group: Group) -> Figure | None:
    """A line for each method and init; None where nothing sparse has been run."""
    lines = _lines(group)
    if not lines:
        return None
    figure = new_figure(group, "Test accuracy against density", (9, 4.8))
    axes = figure.subplots()
    _dense_line(axes, group)
    for number, variants in enumerate(lines):
        place = number / max(1, len(lines) - 1) - 0.5
        shifted = [_density(variant) * DODGE**place for variant in variants]
        _draw_line(axes, group, variants, shifted)
    densities = [_density(variant) for variants in lines for variant in variants]
    log_axis(axes, densities)
    axes.set_xlim(min(densities) / 1.4, max(densities) * 1.4)
    axes.set_xlabel("density (marks at one density are spread out, so that all are seen)")
    axes.set_ylabel("test accuracy, %, mean ± std over seeds")
    axes.grid(alpha=0.3)
    legend_beside(figure, axes)
    return figure


def against_flops(group: Group) -> Figure:
    """Two panels: FLOPs of the training and of an inference."""
    figure = new_figure(group, "Test accuracy against FLOPs", (11, 4.8))
    left, right = figure.subplots(1, 2, sharey=True)
    panels: list[tuple[Axes, str, Callable[[Variant], float | None]]] = [
        (left, "training FLOPs, multiple of dense", group.training_flops),
        (right, "inference FLOPs, multiple of dense", group.inference_flops),
    ]
    for axes, name, flops in panels:
        for variants in [[v] for v in group.variants if v.method == "dense"] + _lines(group):
            known = [v for v in variants if flops(v) is not None]
            _draw_line(axes, group, known, [flops(v) or 0.0 for v in known])
        axes.set_xscale("log")
        plain_log_axis(axes.xaxis)
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
    left.set_ylabel("test accuracy, %, mean ± std over seeds")
    legend_beside(figure, right)
    return figure


def _lines(group: Group) -> list[list[Variant]]:
    """Variants that differ in density alone, each list from the sparsest on."""
    found: dict[tuple[str, str | None], list[Variant]] = {}
    for variant in group.variants:
        if variant.density is not None:
            found.setdefault((variant.method, variant.init), []).append(variant)
    return list(found.values())


def _draw_line(
    axes: Axes, group: Group, variants: Sequence[Variant], places: Sequence[float]
) -> None:
    if not variants:
        return
    points = [mean_and_error(group, variant) for variant in variants]
    first = variants[0]
    axes.errorbar(
        places,
        [mean for mean, _ in points],
        yerr=[error for _, error in points],
        fmt=MARKERS[first.init],
        linestyle=LINES[first.init],
        color=color(first.method),
        markersize=5,
        linewidth=1.2,
        capsize=3,
        label=label(first, density=False),
    )


def _dense_line(axes: Axes, group: Group) -> None:
    for variant in group.variants:
        if variant.method == "dense":
            mean, error = mean_and_error(group, variant)
            shade = color(variant.method)
            axes.axhline(mean, color=shade, linewidth=1.2, label=variant.title)
            axes.axhspan(mean - error, mean + error, color=shade, alpha=0.15)


def _density(variant: Variant) -> float:
    assert variant.density is not None
    return variant.density
