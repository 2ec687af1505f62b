"""The figures of the report; each says in its title which protocol its numbers are from."""

from __future__ import annotations

import itertools
import math
import textwrap
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.cifar.methods import RECIPES
from benchmarks.cifar.report.masks import allocations, history
from benchmarks.cifar.report.results import Group, Variant, title
from benchmarks.cifar.report.structured import Ratio, Times, rows_of
from benchmarks.cifar.report.tuning import Sweep
from benchmarks.common.figures import legend_beside

STYLES = {None: ("D", ":"), "erk": ("o", "-"), "uniform": ("^", "--")}
OTHER_STYLES = [("s", "-."), ("v", "-."), ("P", "-."), ("X", "-.")]
_PALETTES = ("tab10", "Dark2", "Set1")
COLORS: list[tuple[float, ...]] = [
    color for name in _PALETTES for color in matplotlib.colormaps[name].colors
]  # type: ignore[attr-defined]
# Methods at one density would hide each other: their marks are spread over this factor.
DODGE = 1.25
COLUMNS = 3
MASK_PANELS = {
    "fraction": "drop fraction",
    "new": "new at an update, share of live weights",
    "explored": "ever live, share of all weights",
    "density": "density",
}


def color(method: str) -> tuple[float, ...]:
    """The colour that a method has in every figure, one's own too."""
    names = list(RECIPES)
    if method in names:
        return COLORS[names.index(method)]
    own = COLORS[len(names) :]
    return own[zlib.crc32(method.encode()) % len(own)]


def style(init: str | None) -> tuple[str, str]:
    """The mark and the line that an init has in every figure, one's own too."""
    if init in STYLES:
        return STYLES[init]
    return OTHER_STYLES[zlib.crc32(str(init).encode()) % len(OTHER_STYLES)]


def new_figure(group: Group, heading: str, size: tuple[float, float]) -> Figure:
    """An empty figure of so many inches with the protocol in its title."""
    figure = Figure(figsize=size, layout="constrained")
    name_protocol(figure, group, heading)
    return figure


def name_protocol(figure: Figure, group: Group, heading: str) -> None:
    """A title with the protocol's name, and its description below the figure."""
    width = figure.get_figwidth()
    named = f"{heading} ({group.protocol['label']})"
    named = textwrap.fill(named, int(11 * width), break_on_hyphens=False)
    about = textwrap.fill(group.protocol["description"], int(16 * width), break_on_hyphens=False)
    figure.suptitle(named, fontsize=10, fontweight="bold")
    figure.supxlabel(about, fontsize=7, color="dimgrey")


def by_method(group: Group) -> Figure:
    """A mark for every seed and a line at the mean."""
    rows = len(group.variants)
    figure = new_figure(group, "Test accuracy", (7.5, 1.4 + 0.24 * rows))
    axes = figure.subplots()
    for row, variant in enumerate(group.variants):
        shade, mean = color(variant.method), 100 * group.mean(variant, "test")
        marks = 100 * group.test.loc[variant].dropna()
        axes.plot(marks, [row] * len(marks), style(variant.init)[0], color=shade, alpha=0.6)
        axes.plot([mean] * 2, [row - 0.35, row + 0.35], color=shade, linewidth=2)
    axes.set_yticks(range(rows), [variant.label for variant in group.variants])
    axes.set_ylim(rows - 0.4, -0.6)
    axes.set_xlabel("test accuracy, % (a mark for each seed, a line at the mean)")
    axes.grid(axis="x", alpha=0.3)
    return figure


def against_density(group: Group) -> Figure | None:
    """A panel for each init, a line for each method; None where nothing sparse has been run."""
    lines = _lines(v for v in group.variants if v.density is not None)
    if not lines:
        return None
    inits, dense = _inits(group), group.dense()
    figure = new_figure(group, "Test accuracy against density", (2.6 + 4.2 * len(inits), 4.8))
    panels = list(figure.subplots(1, len(inits), sharey=True, squeeze=False).flat)
    for axes, init in zip(panels, inits, strict=True):
        if dense is not None:
            mean, error = 100 * group.mean(dense, "test"), 100 * (group.std(dense) or 0.0)
            axes.axhline(mean, color=color(dense.method), linewidth=1.2, label=dense.title)
            axes.axhspan(mean - error, mean + error, color=color(dense.method), alpha=0.15)
        shown = [variants for variants in lines if variants[0].init in (None, init)]
        for number, variants in enumerate(shown):
            place = DODGE ** (number / max(1, len(shown) - 1) - 0.5)
            _draw(axes, group, variants, [_density(v) * place for v in variants])
        densities = [_density(variant) for variants in shown for variant in variants]
        # One method's own densities would crowd the axis.
        common = [density for density in densities if densities.count(density) > 1]
        _log_axis(axes, common or densities)
        axes.set_xlim(min(densities) / 1.4, max(densities) * 1.4)
        _finish(axes, title(init), "density (marks are spread out)")
    panels[0].set_ylabel("test accuracy, %, mean ± std over seeds")
    legend_beside(figure, panels)
    return figure


def against_flops(group: Group) -> Figure:
    """A row for each init; left over FLOPs of the training, right over those of an inference."""
    inits, dense = _inits(group), group.dense()
    figure = new_figure(group, "Test accuracy against FLOPs", (10.5, 1.2 + 3.6 * len(inits)))
    grid = figure.subplots(len(inits), 2, sharex="col", sharey=True, squeeze=False)
    columns = {"training": group.training_flops, "inference": group.inference_flops}
    lines = _lines(v for v in group.variants if v.density is not None)
    for row, init in zip(grid, inits, strict=True):
        for axes, (name, flops) in zip(row, columns.items(), strict=True):
            for variants in [[] if dense is None else [dense], *lines]:
                known = {v: flops(v) for v in variants if v.init in (None, init)}
                places = {v: place for v, place in known.items() if place is not None}
                _draw(axes, group, list(places), list(places.values()))
            axes.set_xscale("log")
            _plain_log_axis(axes.xaxis)
            _finish(axes, title(init), f"{name} FLOPs, multiple of dense")
            axes.label_outer()
        row[0].set_ylabel("test accuracy, %, mean ± std")
    legend_beside(figure, list(grid.flat))
    return figure


def against_time(group: Group, times: Times) -> Figure | None:
    """A panel for the largest batch of inference and one for training; None without times."""
    timed = [variant for variant in rows_of(group) if times.of(group, variant)]
    if not timed:
        return None
    batch, dense = times.batches[-1], group.dense()
    panels = {
        f"inference time at batch {batch}": lambda one: times.inference(group, one, batch),
        "training time": lambda one: times.training(group, one),
    }
    figure = new_figure(group, "Test accuracy against measured time", (10.5, 4.8))
    drawn = list(figure.subplots(1, len(panels), sharey=True))
    for axes, (name, ratio_of) in zip(drawn, panels.items(), strict=True):
        for line in _lines(timed):
            found: dict[Variant, Ratio] = {v: ratio for v in line if (ratio := ratio_of(v))}
            widths = [
                [max(0.0, one.mean - one.low) for one in found.values()],
                [max(0.0, one.high - one.mean) for one in found.values()],
            ]
            means = [one.mean for one in found.values()]
            _draw(axes, group, list(found), means, label=line[0].title, xerr=widths)
        axes.axvline(1.0, color="dimgrey", linewidth=0.8)
        _draw(axes, group, [] if dense is None else [dense], [1.0])
        axes.set_xlim(left=0.0)
        _finish(axes, "", "")
        axes.set_xlabel(f"{name}, multiple of dense\n{times.machine}", fontsize=8)
    drawn[0].set_ylabel("test accuracy, %, mean ± std over seeds")
    legend_beside(figure, drawn)
    return figure


def erk_against_uniform(group: Group, methods: Sequence[str]) -> Figure:
    """A panel for each method: accuracy over inference FLOPs, a line for each distribution."""
    figure, panels = _panels(group, "ERK against uniform at equal FLOPs", len(methods))
    for axes, method in zip(panels, methods, strict=True):
        for init in ("erk", "uniform"):
            variants = [v for v in group.variants if (v.method, v.init) == (method, init)]
            places = [group.inference_flops(variant) for variant in variants]
            _draw(axes, group, variants, places, label=title(init))
            for variant, place in zip(variants, places, strict=True):
                at = (place, 100 * group.mean(variant, "test"))
                words = {"xytext": (5, -9), "textcoords": "offset points", "fontsize": 6}
                axes.annotate(f"{variant.density:.3g}", at, **words)
        axes.set_xscale("log")
        # Room for the densities, which stand right of their marks.
        axes.margins(x=0.15)
        _plain_log_axis(axes.xaxis)
        _finish(axes, title(method), "inference FLOPs, multiple of dense")
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
                shade, rated = f"C{all_masks.index(sweep.masks)}", sweep.by_rate
                named = {"label": sweep.masks_title, "color": shade, "fmt": "o", "linestyle": "-"}
                _draw(axes, group, list(rated.values()), list(rated), **named)
        _log_axis(axes, (rate for sweep in found for rate in sweep.by_rate))
        axes.axvline(group.settings["optimizer"]["lr"], color="grey", linestyle=":", linewidth=1)
        _finish(axes, variant.label, "learning rate (dotted: the protocol's)")
    legend_beside(figure, panels, title="(alpha, delta_t)")
    return figure


def layer_densities(group: Group, density: float) -> Figure | None:
    """A line for each different allocation of one density; None where no run recorded layers."""
    found = allocations(group, density)
    if not found:
        return None
    names = [name.removesuffix(".weight") for name in found[0].densities.index]
    heading = f"Density of every layer, {density:.3g} in all"
    figure = new_figure(group, heading, (max(8.0, 3 + 0.2 * len(names)), 5))
    axes = figure.subplots()
    # Allocations that several methods share have no method's colour.
    greys = itertools.cycle(("black", "dimgrey", "darkgrey"))
    for line, one in enumerate(found):
        first, several = one.variants[0], len(one.variants) > 1
        mark, dashes = style(first.init)
        shade: Any = next(greys) if several else color(first.method)
        look = {"marker": mark, "linestyle": dashes, "color": shade, "markersize": 4}
        values = one.densities.to_numpy()
        axes.plot(values, label=one.title, linewidth=1.2, zorder=3 + line, **look)
    axes.set_yscale("log")
    _plain_log_axis(axes.yaxis)
    axes.set_ylabel("density of the layer, mean over seeds")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6 if len(names) > 30 else 8)
    axes.grid(alpha=0.3, which="both")
    legend_beside(figure, [axes])
    return figure


def masks_over_time(group: Group, density: float) -> Figure | None:
    """Four panels over the steps of training; None where no run recorded its updates."""
    histories = {v: history(group, v) for v in group.variants if v.density == density}
    recorded = {variant: frame for variant, frame in histories.items() if frame is not None}
    if not recorded:
        return None
    figure = new_figure(group, f"Masks over time, density {density:.3g}", (11, 6))
    panels = list(figure.subplots(2, 2, sharex=True).flat)
    for axes, (name, heading) in zip(panels, MASK_PANELS.items(), strict=True):
        for variant, frame in recorded.items():
            # Pruning drops down to a count, whatever the fraction is.
            if (variant.method, name) != ("pruning", "fraction"):
                look = {"linestyle": style(variant.init)[1], "color": color(variant.method)}
                axes.plot(frame.index, frame[name], linewidth=1.3, label=variant.title, **look)
        _finish(axes, heading, "training step" if axes in panels[2:] else "")
        axes.set_ylim(bottom=0)
    legend_beside(figure, panels)
    return figure


def _draw(
    axes: Axes,
    group: Group,
    variants: Sequence[Variant],
    places: Sequence[float],
    label: str | None = None,
    **look: Any,
) -> None:
    """A line through the mean accuracies of variants, with a bar of one deviation at each."""
    if not variants:
        return
    first = variants[0]
    mark, dashes = style(first.init)
    means = [100 * group.mean(variant, "test") for variant in variants]
    errors = [100 * (group.std(variant) or 0.0) for variant in variants]
    usual = {"fmt": mark, "linestyle": dashes, "color": color(first.method)}
    usual |= {
        "markersize": 5,
        "linewidth": 1.2,
        "capsize": 3,
        "label": label or first.name,
    }
    axes.errorbar(places, means, yerr=errors, **{**usual, **look})


def _lines(variants: Iterable[Variant]) -> list[list[Variant]]:
    """Variants that differ in density alone, each list from the sparsest on; methods in order."""
    found: dict[tuple[str, str | None], list[Variant]] = {}
    for variant in variants:
        found.setdefault((variant.name, variant.init), []).append(variant)
    return sorted(found.values(), key=lambda those: those[0].order()[1:])


def _inits(group: Group) -> list[str]:
    """The inits of the results; where there are none, one panel without a name."""
    return sorted({v.init for v in group.variants if v.init is not None}) or [""]


def _density(variant: Variant) -> float:
    assert variant.density is not None
    return variant.density


def _finish(axes: Axes, heading: str, under: str) -> None:
    axes.set_title(heading, fontsize=9)
    axes.set_xlabel(under)
    axes.grid(alpha=0.3)


def _log_axis(axes: Axes, values: Iterable[float]) -> None:
    """A logarithmic x axis with a tick, in plain digits, at each of the values."""
    axes.set_xscale("log")
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xticks(sorted(set(values)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _plain_log_axis(axis: Axis) -> None:
    """Ticks at 1, 2 and 5, in plain digits instead of powers of ten, on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


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
