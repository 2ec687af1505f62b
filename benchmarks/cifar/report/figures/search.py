"""Optuna's plots of a search, with the protocol in their titles."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import cast

import matplotlib
import optuna
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.importance import FanovaImportanceEvaluator
from optuna.visualization.matplotlib import plot_contour, plot_param_importances

from benchmarks.cifar.report.figures.style import label, name_protocol
from benchmarks.cifar.report.summary import Group
from benchmarks.cifar.report.trials import Trials

SIZE = (6.4, 4.8)
# Of fewer there is neither a plane nor a share of its variance.
FEWEST = 4


def contour(group: Group, search: Trials) -> Figure | None:
    """Validation accuracy over alpha and delta_t; None of too few trials.

    As in the report, a circle marks the protocol's own setting and a triangle the optimum.
    """
    if not _varies(search):
        return None
    axes = _drawn(
        lambda: cast(
            "Axes",
            plot_contour(
                search.study(),
                params=["alpha", "delta_t"],
                target_name="validation accuracy, %, mean over seeds",
            ),
        )
    )
    _mark(axes, search.reference, "o", "the protocol's own")
    _mark(axes, (search.best.alpha, search.best.delta_t), "^", "optimum")
    axes.legend(loc="upper right", fontsize=8, framealpha=0.9)
    axes.set(xlabel="alpha", ylabel="delta_t, steps")
    return _finished(axes, group, f"Search of (alpha, delta_t) for {label(search.variant)}")


def importances(group: Group, search: Trials) -> Figure | None:
    """How much of the variance each parameter explains (fANOVA); None of too few trials."""
    if not _varies(search):
        return None
    evaluator = FanovaImportanceEvaluator(seed=0)
    axes = _drawn(lambda: plot_param_importances(search.study(), evaluator=evaluator))
    axes.set_xlim(right=1.1)
    axes.set(xlabel="importance for the validation accuracy (fANOVA)", ylabel="")
    if (legend := axes.get_legend()) is not None:
        legend.remove()
    axes.figure.set_size_inches(SIZE[0], 2.4)
    return _finished(axes, group, f"Importance for {label(search.variant)}")


def _varies(search: Trials) -> bool:
    trials = search.complete
    return len(trials) >= FEWEST and all(
        len(set(values)) > 1
        for values in (
            [trial.alpha for trial in trials],
            [trial.delta_t for trial in trials],
            [trial.validation.mean for trial in trials],
        )
    )


def _drawn(plot: Callable[[], Axes]) -> Axes:
    # Optuna draws by way of pyplot, which is to open no window, and sets a style for good.
    matplotlib.use("agg")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    style = ["default", {"figure.constrained_layout.use": True, "figure.figsize": SIZE}]
    with pyplot.style.context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        axes = plot()
    pyplot.close(axes.figure)
    return axes


def _mark(axes: Axes, place: tuple[float, int], marker: str, name: str) -> None:
    axes.plot(
        *place,
        marker,
        markersize=11,
        markerfacecolor="black",
        markeredgecolor="white",
        linestyle="none",
        label=name,
        clip_on=False,
        zorder=5,
    )
    # The contour reaches as far as the trials do; the protocol's own setting may lie outside.
    axes.autoscale(enable=False)
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    axes.set_xlim(min(left, place[0] - 0.02), max(right, place[0] + 0.02))
    axes.set_ylim(min(bottom, 0.8 * place[1]), max(top, 1.05 * place[1]))


def _finished(axes: Axes, group: Group, heading: str) -> Figure:
    """Optuna's figure with our title and sizes, and without its grey ground."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    axes.set_title("")
    axes.set_title("", loc="left")
    axes.set_facecolor("white")
    for panel in figure.axes:
        panel.tick_params(labelsize=8)
        for axis in (panel.xaxis, panel.yaxis):
            axis.label.set(fontsize=9, color="black")
    name_protocol(figure, group, heading)
    return figure
