"""Test accuracy against measured times."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.cifar.report.figures.style import LINES, MARKERS, color, mean_and_error, new_figure
from benchmarks.cifar.report.summary import Group, Variant
from benchmarks.cifar.report.times import Ratio, Times
from benchmarks.common.figures import legend_beside


def against_time(group: Group, variants: Sequence[Variant], times: Times) -> Figure | None:
    """A panel for the largest batch of inference and one for training; None without times.

    Args:
        group: The results.
        variants: Which of them.
        times: Of one machine.
    """
    timed = [variant for variant in variants if times.of(group, variant)]
    if not timed:
        return None
    batch = times.batches[-1]
    panels: list[tuple[str, Callable[[Variant], Ratio | None]]] = [
        (
            f"inference time at batch {batch}, multiple of dense",
            lambda variant: times.inference(group, variant, batch),
        ),
        ("training time, multiple of dense", lambda variant: times.training(group, variant)),
    ]
    figure = new_figure(group, "Test accuracy against measured time", (10.5, 4.8))
    drawn = list(figure.subplots(1, len(panels), sharey=True))
    for axes, (name, ratio_of) in zip(drawn, panels, strict=True):
        for line in _lines(timed):
            ratios = [(variant, ratio) for variant in line if (ratio := ratio_of(variant))]
            points = [mean_and_error(group, variant) for variant, _ in ratios]
            axes.errorbar(
                [ratio.mean for _, ratio in ratios],
                [mean for mean, _ in points],
                xerr=[
                    [max(0.0, ratio.mean - ratio.low) for _, ratio in ratios],
                    [max(0.0, ratio.high - ratio.mean) for _, ratio in ratios],
                ],
                yerr=[error for _, error in points],
                fmt=MARKERS[line[0].init],
                linestyle=LINES[line[0].init],
                color=color(line[0].method),
                markersize=5,
                linewidth=1.2,
                capsize=3,
                label=line[0].title,
            )
        axes.axvline(1.0, color="dimgrey", linewidth=0.8)
        _dense_point(axes, group)
        axes.set_xlim(left=0.0)
        axes.grid(alpha=0.3)
        axes.set_xlabel(f"{name}\n{times.machine}", fontsize=8)
    drawn[0].set_ylabel("test accuracy, %, mean ± std over seeds")
    legend_beside(figure, drawn)
    return figure


def _dense_point(axes: Axes, group: Group) -> None:
    for variant in group.variants:
        if variant.method == "dense":
            mean, error = mean_and_error(group, variant)
            shade, mark = color(variant.method), MARKERS[variant.init]
            axes.errorbar(
                [1.0], [mean], yerr=[error], fmt=mark, color=shade, capsize=3, label=variant.title
            )


def _lines(variants: Sequence[Variant]) -> list[list[Variant]]:
    """Variants that differ in density alone."""
    found: dict[tuple[str, str | None], list[Variant]] = {}
    for variant in variants:
        found.setdefault((variant.method, variant.init), []).append(variant)
    return list(found.values())
