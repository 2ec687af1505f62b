"""Accuracy over one quantity: ERK beside uniform over FLOPs, and the learning rate's sweep."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

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
from benchmarks.cifar.summary import Group, Variant, title

COLUMNS = 3


def erk_against_uniform(group: Group, methods: Sequence[str]) -> Figure:
    """A panel for each method: accuracy over inference FLOPs, a line for each distribution."""
    columns = min(COLUMNS, len(methods))
    rows = math.ceil(len(methods) / columns)
    size = (max(6.0, 3.4 * columns + 0.6), 1.0 + 3.0 * rows)
    figure = new_figure(group, "ERK against uniform at equal FLOPs", size)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for unused in panels[len(methods) :]:
        unused.remove()
    for axes, method in zip(panels, methods, strict=False):
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
        plain_log_axis(axes.xaxis)
        axes.set_title(title(method), fontsize=9)
        axes.set_xlabel("inference FLOPs, multiple of dense")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, loc="lower right")
    for axes in grid[:, 0]:
        axes.set_ylabel("test accuracy, %, mean ± std\n(densities beside marks)", fontsize=8)
    return figure


def learning_rates(group: Group, sweep: Mapping[Variant, Mapping[float, Variant]]) -> Figure:
    """A line for each variant over the learning rates of its sweep.

    Args:
        group: The results.
        sweep: For each variant with the protocol's own settings, what was run at each rate.
    """
    figure = new_figure(group, "Test accuracy against the learning rate", (8, 4.4))
    axes = figure.subplots()
    for variant, by_rate in sweep.items():
        points = [mean_and_error(group, by_rate[rate]) for rate in sorted(by_rate)]
        axes.errorbar(
            sorted(by_rate),
            [mean for mean, _ in points],
            yerr=[error for _, error in points],
            fmt=MARKERS[variant.init],
            linestyle=LINES[variant.init],
            color=color(variant.method),
            capsize=3,
            label=label(variant),
        )
    log_axis(axes, (rate for by_rate in sweep.values() for rate in by_rate))
    axes.axvline(group.settings["optimizer"]["lr"], color="grey", linestyle=":", linewidth=1)
    axes.set_xlabel("learning rate (dotted: the protocol's own)")
    axes.set_ylabel("test accuracy, %, mean ± std over seeds")
    axes.grid(alpha=0.3)
    legend_beside(figure, [axes])
    return figure
