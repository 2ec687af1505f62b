"""What masks look like in the end, layer by layer, and what they did over time."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.cifar.report.figures.style import LINES, MARKERS, color, new_figure, plain_log_axis
from benchmarks.cifar.report.layers import Allocation, allocations, histories, layer_names
from benchmarks.cifar.report.summary import Group, Variant
from benchmarks.common.figures import legend_beside

PANELS = (
    ("fraction", "drop fraction"),
    ("new", "new at an update, share of live weights"),
    ("explored", "ever live, share of all weights"),
    ("density", "density"),
)


def layer_densities(group: Group, density: float) -> Figure | None:
    """A line for each different allocation of one density; None where no run recorded layers."""
    found = allocations(group, density)
    if not found:
        return None
    names = [name.removesuffix(".weight") for name in layer_names(group, density)]
    figure = new_figure(
        group, f"Density of every layer, {density:.3g} in all", (max(8.0, 3 + 0.2 * len(names)), 5)
    )
    axes = figure.subplots()
    shades = _colors(found)
    for line, allocation in enumerate(found):
        first = allocation.variants[0]
        axes.plot(
            range(len(names)),
            allocation.densities,
            MARKERS[first.init],
            linestyle=LINES[first.init],
            color=shades[line],
            markersize=4,
            linewidth=1.2,
            zorder=3 + line,
            label=allocation.title,
        )
    axes.set_yscale("log")
    plain_log_axis(axes.yaxis)
    axes.set_ylabel("density of the layer, mean over seeds")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6 if len(names) > 30 else 8)
    axes.grid(alpha=0.3, which="both")
    legend_beside(figure, [axes])
    return figure


def _colors(found: Sequence[Allocation]) -> list[str | tuple[float, ...]]:
    """That of a method that is alone, and greys for those that several methods share."""
    greys = itertools.cycle(("black", "dimgrey", "darkgrey"))
    return [
        next(greys) if len(allocation.variants) > 1 else color(allocation.variants[0].method)
        for allocation in found
    ]


def over_time(group: Group, density: float) -> Figure | None:
    """Four panels over the steps of training; None where no run recorded its updates."""
    variants = [v for v in group.variants if v.density == density and histories(group, v)]
    if not variants:
        return None
    figure = new_figure(group, f"Masks over time, density {density:.3g}", (11, 6))
    panels = list(figure.subplots(2, 2, sharex=True).flat)
    for axes, (name, heading) in zip(panels, PANELS, strict=True):
        for variant in variants:
            # Pruning drops down to a count, whatever the fraction is.
            if (variant.method, name) != ("pruning", "fraction"):
                _draw_history(axes, group, variant, name)
        axes.set_title(heading, fontsize=9)
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0)
    for axes in panels[2:]:
        axes.set_xlabel("training step")
    legend_beside(figure, panels)
    return figure


def _draw_history(axes: Axes, group: Group, variant: Variant, name: str) -> None:
    by_step: dict[int, list[float]] = {}
    for history in histories(group, variant):
        for update in history:
            if not update["skipped"]:
                by_step.setdefault(update["step"], []).append(update[name])
    steps = sorted(by_step)
    axes.plot(
        steps,
        [statistics.fmean(by_step[step]) for step in steps],
        LINES[variant.init],
        color=color(variant.method),
        linewidth=1.3,
        label=variant.title,
    )
