"""The figures of the report; the title of each names the protocol of its numbers."""

from __future__ import annotations

import textwrap
import zlib
from collections.abc import Callable, Mapping, Sequence

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.cifar.methods import RECIPES
from benchmarks.cifar.report.masks import history
from benchmarks.cifar.report.results import Group, Variant
from benchmarks.cifar.report.structured import Ratio, Times
from benchmarks.cifar.report.texts import title
from benchmarks.cifar.report.tuning import best, complete
from benchmarks.common.figures import legend_beside

STYLES = {None: ("D", ":"), "erk": ("o", "-"), "uniform": ("^", "--")}
OTHER_STYLES = [("s", "-."), ("v", "-."), ("P", "-."), ("X", "-.")]
COLORS = [
    color
    for name in ("tab10", "Dark2", "Set1")
    for color in matplotlib.colormaps[name].colors  # type: ignore[attr-defined]
]
# Marks of methods at one density are spread over this factor, so that they don't hide each other.
DODGE = 1.25
MASK_PANELS = {
    "fraction": "drop fraction",
    "new": "new at an update, share of live weights",
    "explored": "ever live, share of all weights",
    "density": "density",
}
# Fewer trials do not span a plane.
FEWEST_TRIALS = 4
#: The position of a variant on an axis; None if it is not known.
Place = Callable[[Variant], float | Ratio | None]


def _color(method: str) -> tuple[float, ...]:
    """The colour of a method, the same in every figure; a user's methods have one too."""
    names = list(RECIPES)
    number = names.index(method) if method in names else zlib.crc32(method.encode())
    return COLORS[number % len(COLORS)]


def _style(init: str | None) -> tuple[str, str]:
    """The mark and line of an init, the same in every figure; a user's inits have them too."""
    other = OTHER_STYLES[zlib.crc32(str(init).encode()) % len(OTHER_STYLES)]
    return STYLES.get(init, other)


def by_method(group: Group) -> Figure:
    """A mark for every seed and a line at the mean."""
    figure = _new(group, "Test accuracy", (7.5, 1.4 + 0.24 * len(group.variants)))
    axes = figure.subplots()
    for row, variant in enumerate(group.variants):
        shade, marks = _color(variant.method), 100 * group.test.loc[variant].dropna()
        axes.plot(marks, [row] * len(marks), _style(variant.init)[0], color=shade, alpha=0.6)
        axes.plot([marks.mean()] * 2, [row - 0.35, row + 0.35], color=shade, linewidth=2)
    axes.set_yticks(range(len(group.variants)), [variant.label for variant in group.variants])
    axes.set_ylim(len(group.variants) - 0.4, -0.6)
    _finish(axes, "", "test accuracy, % (a mark for each seed, a line at the mean)")
    return figure


def against_density(group: Group) -> Figure:
    """A panel for each init, a line for each method."""
    names = list(dict.fromkeys(one.name for one in group.variants))

    def place(one: Variant) -> float:
        return (one.density or 1.0) * DODGE ** (names.index(one.name) / len(names) - 0.5)

    axes: dict[str, Place] = {"density (marks are spread out)": place}
    return _against(group, "Test accuracy against density", axes, group.variants)


def against_flops(group: Group) -> Figure:
    """A row of panels for each init; columns for training FLOPs, inference FLOPs, and time."""
    places: dict[str, Place] = {
        "training FLOPs, multiple of dense": group.training_flops,
        "inference FLOPs, multiple of dense": group.inference_flops,
    }
    heading = "Test accuracy against FLOPs"
    if all(group.training_time(variant) for variant in group.variants):
        heading += " and time"
        places["measured training time, multiple of dense"] = group.training_time
    return _against(group, heading, places, group.variants)


def against_time(group: Group, times: Times) -> Figure | None:
    """A row of panels for each init; columns for inference and training; None without times."""
    timed = [variant for variant in group.variants if times.of(group, variant)]
    if not timed:
        return None
    batch, below = times.batches[-1], f"time, multiple of dense\n{times.machine}"
    places: dict[str, Place] = {
        f"inference {below}, batch {batch}": lambda one: times.ratio(group, one, batch),
        f"training {below}": lambda one: times.ratio(group, one),
    }
    return _against(group, "Test accuracy against measured time", places, timed)


def masks_over_time(group: Group, density: float) -> Figure | None:
    """Four panels over the steps of training; None if no run recorded its updates."""
    histories = {v: history(group, v) for v in group.variants if v.density == density}
    recorded = {variant: frame for variant, frame in histories.items() if frame is not None}
    if not recorded:
        return None
    figure = _new(group, f"Masks over time, density {density:.3g}", (11, 6))
    panels = list(figure.subplots(2, 2, sharex=True).flat)
    for axes, (name, heading) in zip(panels, MASK_PANELS.items(), strict=True):
        for variant, frame in recorded.items():
            # Pruning drops weights until a count is left, whatever the fraction.
            if (variant.method, name) != ("pruning", "fraction"):
                look = {"linestyle": _style(variant.init)[1], "color": _color(variant.method)}
                axes.plot(frame.index, frame[name], label=variant.title, **look)
        _finish(axes, heading, "training step")
        axes.set_ylim(bottom=0)
    legend_beside(figure, panels)
    return figure


def contour(group: Group, variant: Variant, trials: pd.DataFrame) -> Figure | None:
    """Validation accuracy over alpha and delta_t; None if there are too few trials.

    As in the report, a circle marks the protocol's own setting and a triangle the optimum.
    """
    shown, own, optimum = complete(trials), group.settings["sparsity"], best(trials)
    varied = shown[["alpha", "delta_t", "validation"]].nunique()
    if len(shown) < FEWEST_TRIALS or varied.min() == 1:
        return None
    figure = _new(group, f"Search of (alpha, delta_t) for {variant.label}", (6.4, 4.8))
    axes, heights = figure.subplots(), 100 * shown.validation
    plane = axes.tricontourf(shown.alpha, shown.delta_t, heights, levels=12, cmap="Blues")
    figure.colorbar(plane, label="validation accuracy, %, mean over seeds")
    axes.plot(shown.alpha, shown.delta_t, "k.", markersize=4, label="a trial")
    look = {"markerfacecolor": "black", "markeredgecolor": "white", "markersize": 11}
    axes.plot(own["alpha"], own["delta_t"], "o", label="the protocol's own", **look)
    axes.plot(optimum.alpha, optimum.delta_t, "^", label="optimum", **look)
    above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0)}
    axes.legend(**above, ncols=3, fontsize=8, frameon=False)
    # Trials at the edge of the contours would be cut off.
    axes.use_sticky_edges = False
    axes.margins(0.05)
    axes.set(xlabel="alpha", ylabel="delta_t, steps")
    return figure


def _new(group: Group, heading: str, size: tuple[float, float]) -> Figure:
    """An empty figure of this size in inches, with the protocol's name in its title."""
    figure, width = Figure(figsize=size, layout="constrained"), size[0]
    named = f"{heading} ({group.protocol['label']})"
    named = textwrap.fill(named, int(11 * width), break_on_hyphens=False)
    about = textwrap.fill(group.protocol["description"], int(16 * width), break_on_hyphens=False)
    figure.suptitle(named, fontsize=10, fontweight="bold")
    figure.supxlabel(about, fontsize=7, color="dimgrey")
    return figure


def _against(
    group: Group, heading: str, places: Mapping[str, Place], variants: Sequence[Variant]
) -> Figure:
    """A row of panels for each init and a column for each axis; a line for each method."""
    inits = sorted({one.init for one in variants if one.init is not None}) or [""]
    figure = _new(group, heading, (2.6 + 4.2 * len(places), 1.2 + 3.6 * len(inits)))
    grid = figure.subplots(len(inits), len(places), sharex="col", sharey=True, squeeze=False)
    for row, init in zip(grid, inits, strict=True):
        lines: dict[str, list[Variant]] = {}
        for one in sorted(variants, key=lambda one: one.order()[2:]):
            if one.init in (None, init):
                lines.setdefault(one.name, []).append(one)
        for axes, (name, place_of) in zip(row, places.items(), strict=True):
            for line in lines.values():
                found = {one: place for one in sorted(line) if (place := place_of(one))}
                if found:
                    _draw(axes, group, list(found), list(found.values()))
            axes.set_xscale("log")
            _plain_digits(axes.xaxis)
            _finish(axes, title(init), name)
            axes.label_outer()
        row[0].set_ylabel("test accuracy, %, mean ± std over seeds")
    legend_beside(figure, list(grid.flat))
    return figure


def _draw(
    axes: Axes, group: Group, variants: Sequence[Variant], places: Sequence[float | Ratio]
) -> None:
    """A line through the mean accuracies of variants, with a bar of one deviation at each."""
    ratios = [place if isinstance(place, Ratio) else Ratio(*[place] * 3) for place in places]
    mark, dashes = _style(variants[0].init)
    axes.errorbar(
        [one.mean for one in ratios],
        [100 * group.mean(variant, "accuracy.test") for variant in variants],
        xerr=[[one.mean - one.low for one in ratios], [one.high - one.mean for one in ratios]],
        yerr=[100 * (group.std(variant) or 0.0) for variant in variants],
        fmt=mark,
        linestyle=dashes,
        color=_color(variants[0].method),
        label=variants[0].name,
        markersize=5,
        linewidth=1.2,
        capsize=3,
    )


def _finish(axes: Axes, heading: str, under: str) -> None:
    axes.set_title(heading, fontsize=9)
    axes.set_xlabel(under, fontsize=9)
    axes.grid(alpha=0.3)


def _plain_digits(axis: Axis) -> None:
    """Ticks at 1, 2 and 5, in plain digits instead of powers of ten, on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
