"""What all figures have in common: colours, titles, and how they are written."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.cifar.protocols.methods import METHODS
from benchmarks.cifar.report.summary import Group, Variant

MARKERS = {None: "D", "erk": "o", "uniform": "^"}
LINES = {None: ":", "erk": "-", "uniform": "--"}
_PALETTE = [*matplotlib.colormaps["tab10"].colors, *matplotlib.colormaps["Dark2"].colors]  # type: ignore[attr-defined]


def color(method: str) -> tuple[float, ...]:
    """The colour that a method has in every figure."""
    index = METHODS.index(method) if method in METHODS else len(METHODS)
    chosen: tuple[float, ...] = _PALETTE[index % len(_PALETTE)]
    return chosen


def new_figure(group: Group, heading: str, size: tuple[float, float]) -> Figure:
    """An empty figure whose title says which protocol its numbers are from.

    Args:
        group: Whose numbers.
        heading: What the figure shows.
        size: Width and height in inches.
    """
    figure = Figure(figsize=size, layout="constrained")
    name_protocol(figure, group, heading)
    return figure


def name_protocol(figure: Figure, group: Group, heading: str) -> None:
    """A title with the protocol's name, and its description below the figure."""
    title = _wrapped(figure, f"{heading} ({group.protocol['label']})", 11)
    figure.suptitle(title, fontsize=10, fontweight="bold")
    figure.supxlabel(
        _wrapped(figure, group.protocol["description"], 16), fontsize=7, color="dimgrey"
    )


def _wrapped(figure: Figure, text: str, letters_per_inch: int) -> str:
    width = int(letters_per_inch * figure.get_figwidth())
    return textwrap.fill(text, width, break_on_hyphens=False)


def label(variant: Variant) -> str:
    """The variant as a legend names it."""
    return variant.title if variant.density is None else f"{variant.title} {variant.density:.3g}"


def mean_and_error(group: Group, variant: Variant) -> tuple[float, float]:
    """Mean test accuracy and its standard deviation (0 for a single seed), in percent."""
    accuracy = group.statistic(variant, "accuracy", "test")
    return 100 * accuracy.mean, 100 * (accuracy.std or 0.0)


def log_axis(axes: Axes, values: Iterable[float]) -> None:
    """A logarithmic x axis with a tick, in plain digits, at each of the values."""
    axes.set_xscale("log")
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xticks(sorted(set(values)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def plain_log_axis(axis: Axis) -> None:
    """Ticks at 1, 2 and 5, in plain digits instead of powers of ten, on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
