"""Accuracy over one quantity: ERK beside uniform over FLOPs, and the learning rate's sweep."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
from benchmarks.cifar.report.summary import Group, title
from benchmarks.cifar.report.sweep import Sweep
from benchmarks.common.figures import legend_beside

COLUMNS = 3


def erk_against_uniform(group: Group, methods: Sequence[str]) -> Figure:
    """A panel for each method: accuracy over inference FLOPs, a line for each distribution."""
    heading = "ERK against uniform at equal FLOPs"
    figure, panels = _panels(group, heading, len(methods))
    for axes, method in zip(panels, methods, strict=True):
        for init in ("erk", "uniform"):
            variants = [v for v in group.variants if (v.method, v.init) == (method, init)]
            points = [mean_and_error(group, variant) for variant in variants]
            places = [group.inference_flops(variant) for variant in variants]
            axes.errorbar(
                places,
                [mean for mean, _ in points],
                yerr=[error for _, error in points],
                fmt=MARKERS[init],
                linestyle=LINES[init],
                color=color(method),
                capsize=3,
                label=title(init),
            )
            for variant, place, (mean, _) in zip(variants, places, points, strict=True):
                axes.annotate(
                    f"{variant.density:.3g}",
                    (place, mean),
                    xytext=(5, -9),
                    textcoords="offset points",
                    fontsize=6,
                )
        axes.set_xscale("log")
        # Room for the densities, which stand right of their marks.
        axes.margins(x=0.15)
        plain_log_axis(axes.xaxis)
        axes.set_title(title(method), fontsize=9)
        axes.set_xlabel("inference FLOPs, multiple of dense")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="lower right", title="densities at marks", title_fontsize=7)
    return figure


def learning_rates(group: Group, found: Sequence[Sweep]) -> Figure:
    """A panel for each variant, a line for each pair of alpha and delta_t."""
    variants = list(dict.fromkeys(sweep.variant.plain for sweep in found))
    all_masks = sorted({sweep.masks for sweep in found})
    figure, panels = _panels(group, "Test accuracy against the learning rate", len(variants))
    for axes, variant in zip(panels, variants, strict=True):
        for sweep in found:
            if sweep.variant.plain == variant:
                points = [mean_and_error(group, one) for one in sweep.by_rate.values()]
                axes.errorbar(
                    list(sweep.by_rate),
                    [mean for mean, _ in points],
                    yerr=[error for _, error in points],
                    fmt="o-",
                    color=f"C{all_masks.index(sweep.masks)}",
                    capsize=3,
                    label=sweep.masks_title,
                )
        log_axis(axes, (rate for sweep in found for rate in sweep.by_rate))
        axes.axvline(group.settings["optimizer"]["lr"], color="grey", linestyle=":", linewidth=1)
        axes.set_title(label(variant), fontsize=9)
        axes.set_xlabel("learning rate (dotted: the protocol's)")
        axes.grid(alpha=0.3)
    legend_beside(figure, panels, title="(alpha, delta_t)")
    return figure


def _panels(group: Group, heading: str, count: int) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels in rows of three, which share their axes."""
    columns = min(COLUMNS, count)
    rows = math.ceil(count / columns)
    figure = new_figure(group, heading, (max(6.0, 3.4 * columns + 1.2), 1.0 + 3.0 * rows))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes in grid[:, 0]:
        axes.set_ylabel("test accuracy, %, mean ± std", fontsize=9)
    panels = list(grid.flat)
    for unused in panels[count:]:
        unused.remove()
    for lowest in panels[max(0, count - columns) : count]:
        lowest.tick_params(labelbottom=True)
    return figure, panels[:count]
