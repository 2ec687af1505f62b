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
    log_axis,
    mean_and_error,
    new_figure,
    plain_log_axis,
)
from benchmarks.cifar.report.summary import Group, Variant, title
from benchmarks.common.figures import legend_beside

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
    axes.set_ylim(len(variants) - 0.4, -0.6)
    axes.set_xlabel("test accuracy, % (a mark for each seed, a line at the mean)")
    axes.grid(axis="x", alpha=0.3)
    return figure


def against_density(group: Group) -> Figure | None:
    """A panel for each init, a line for each method; None where nothing sparse has been run."""
    lines = _lines(group)
    if not lines:
        return None
    inits = _inits(group)
    figure = new_figure(group, "Test accuracy against density", (2.6 + 4.2 * len(inits), 4.8))
    panels = list(figure.subplots(1, len(inits), sharey=True, squeeze=False).flat)
    for axes, init in zip(panels, inits, strict=True):
        _dense_line(axes, group)
        shown = [variants for variants in lines if variants[0].init in (None, init)]
        for number, variants in enumerate(shown):
            place = number / max(1, len(shown) - 1) - 0.5
            shifted = [_density(variant) * DODGE**place for variant in variants]
            _draw_line(axes, group, variants, shifted)
        densities = [_density(variant) for variants in shown for variant in variants]
        log_axis(axes, _common(densities))
        axes.set_xlim(min(densities) / 1.4, max(densities) * 1.4)
        axes.set_title(title(init), fontsize=9)
        axes.set_xlabel("density (marks are spread out)")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy, %, mean ± std over seeds")
    legend_beside(figure, panels)
    return figure


def against_flops(group: Group) -> Figure:
    """A row for each init; left over FLOPs of the training, right over those of an inference."""
    inits = _inits(group)
    figure = new_figure(group, "Test accuracy against FLOPs", (10.5, 1.2 + 3.6 * len(inits)))
    grid = figure.subplots(len(inits), 2, sharex="col", sharey=True, squeeze=False)
    columns: list[tuple[str, Callable[[Variant], float | None]]] = [
        ("training FLOPs, multiple of dense", group.training_flops),
        ("inference FLOPs, multiple of dense", group.inference_flops),
    ]
    dense = [[variant] for variant in group.variants if variant.method == "dense"]
    for row, init in zip(grid, inits, strict=True):
        for axes, (name, flops) in zip(row, columns, strict=True):
            for variants in dense + _lines(group):
                known = [v for v in variants if flops(v) is not None and v.init in (None, init)]
                _draw_line(axes, group, known, [flops(v) or 0.0 for v in known])
            axes.set_xscale("log")
            plain_log_axis(axes.xaxis)
            axes.grid(alpha=0.3)
            axes.set_title(title(init), fontsize=9)
            axes.set_xlabel(name)
            axes.label_outer()
        row[0].set_ylabel("test accuracy, %, mean ± std")
    legend_beside(figure, list(grid.flat))
    return figure


def _inits(group: Group) -> list[str]:
    """The inits of the results; where there are none, one panel without a name."""
    found = sorted({variant.init for variant in group.variants if variant.init is not None})
    return found or [""]


def _lines(group: Group) -> list[list[Variant]]:
    """Variants that differ in density alone, each list from the sparsest on; methods in order."""
    found: dict[tuple[str, str | None], list[Variant]] = {}
    for variant in group.variants:
        if variant.density is not None:
            found.setdefault((variant.method, variant.init), []).append(variant)
    return sorted(found.values(), key=lambda variants: variants[0].order()[1:])


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
        label=title(first.method),
    )


def _dense_line(axes: Axes, group: Group) -> None:
    for variant in group.variants:
        if variant.method == "dense":
            mean, error = mean_and_error(group, variant)
            shade = color(variant.method)
            axes.axhline(mean, color=shade, linewidth=1.2, label=variant.title)
            axes.axhspan(mean - error, mean + error, color=shade, alpha=0.15)


def _common(densities: Sequence[float]) -> list[float]:
    """Those that occur more than once, or all: one method's own would crowd the axis."""
    return [density for density in densities if densities.count(density) > 1] or list(densities)


def _density(variant: Variant) -> float:
    assert variant.density is not None
    return variant.density
