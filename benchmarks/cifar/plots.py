"""The figure of a report: accuracy by method, and accuracy against FLOPs."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.cifar.checkpoint import write_atomic
from benchmarks.cifar.protocol import METHODS
from benchmarks.cifar.summary import Group, Variant

MARKERS = {None: "o", "erk": "s", "uniform": "^"}
COLORS = dict(zip(METHODS, matplotlib.colormaps["tab20"].colors, strict=False))  # type: ignore[attr-defined]


def draw(group: Group, path: Path) -> None:
    """Write ``path`` with the suffixes ``.png`` and ``.svg``.

    Args:
        group: The results of one protocol.
        path: Where to, without a suffix.
    """
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    figure.suptitle(f"{group.protocol['label']}\n{group.protocol['description']}", fontsize=9)
    _by_method(left, group)
    _against_flops(right, group)
    for suffix, metadata in ((".png", {"Software": None}), (".svg", {"Date": None})):
        buffer = io.BytesIO()
        # Without a salt and with a date, the same results would give another file each time.
        with matplotlib.rc_context({"svg.hashsalt": "sparseopt"}):
            figure.savefig(buffer, format=suffix[1:], dpi=150, metadata=metadata)
        write_atomic(path.with_name(path.name + suffix), buffer.getvalue())


def _by_method(axes: Axes, group: Group) -> None:
    """A mark for every seed and a line at the mean."""
    variants = list(group.variants)
    for row, variant in enumerate(variants):
        accuracy = group.statistic(variant, "accuracy", "test")
        percents = [100 * value for value in accuracy.values]
        color = COLORS[variant.method]
        axes.plot(percents, [row] * len(percents), MARKERS[variant.init], color=color, alpha=0.6)
        axes.plot([100 * accuracy.mean] * 2, [row - 0.3, row + 0.3], color=color, linewidth=2)
    axes.set_yticks(range(len(variants)), [_label(variant) for variant in variants])
    axes.invert_yaxis()
    axes.set_xlabel("test accuracy, % (a mark for each seed, a line at the mean)")
    axes.grid(axis="x", alpha=0.3)


def _against_flops(axes: Axes, group: Group) -> None:
    for variant in group.variants:
        accuracy = group.statistic(variant, "accuracy", "test")
        axes.errorbar(
            group.flops_ratio(variant, "train"),
            100 * accuracy.mean,
            yerr=100 * (accuracy.std or 0.0),
            fmt=MARKERS[variant.init],
            color=COLORS[variant.method],
            capsize=3,
            label=_label(variant),
        )
    axes.set_xscale("log")
    axes.set_xlabel("training FLOPs, multiple of dense")
    axes.set_ylabel("test accuracy, %, mean ± std")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))


def _label(variant: Variant) -> str:
    density = "" if variant.density is None else f" {variant.density:g}"
    return variant.title + density
