"""Optuna's plots of a search, with the protocol in their titles."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import matplotlib
import optuna
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from optuna.importance import FanovaImportanceEvaluator
from optuna.visualization.matplotlib import plot_contour, plot_param_importances

from benchmarks.cifar.report.figures import name_protocol
from benchmarks.cifar.report.results import Group
from benchmarks.cifar.report.tuning import Trials

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
        plot_contour,
        _study(search),
        params=["alpha", "delta_t"],
        target_name="validation accuracy, %, mean over seeds",
    )
    best = (search.best.alpha, search.best.delta_t)
    _mark(axes, search.reference, "o", "the protocol's own")
    _mark(axes, best, "^", "optimum")
    axes.legend(loc="upper right", fontsize=8, framealpha=0.9)
    axes.set(xlabel="alpha", ylabel="delta_t, steps")
    return _finished(axes, group, f"Search of (alpha, delta_t) for {search.variant.label}")


def importances(group: Group, search: Trials) -> Figure | None:
    """How much of the variance each parameter explains (fANOVA); None of too few trials."""
    if not _varies(search):
        return None
    evaluator = FanovaImportanceEvaluator(seed=0)
    axes = _drawn(plot_param_importances, _study(search), evaluator=evaluator)
    axes.set_xlim(right=1.1)
    axes.set(xlabel="importance for the validation accuracy (fANOVA)", ylabel="")
    if (legend := axes.get_legend()) is not None:
        legend.remove()
    axes.figure.set_size_inches(SIZE[0], 2.4)
    return _finished(axes, group, f"Importance for {search.variant.label}")


def _varies(search: Trials) -> bool:
    trials = search.complete
    counts = trials[["alpha", "delta_t", "validation"]].nunique()
    return len(trials) >= FEWEST and bool((counts > 1).all())


def _study(search: Trials) -> optuna.Study:
    """The complete trials as Optuna's plots want them, values in percent."""
    trials = search.complete
    alphas, delta_ts = trials.alpha.astype(float), trials.delta_t.astype(int)
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        "alpha": optuna.distributions.FloatDistribution(float(alphas.min()), float(alphas.max())),
        "delta_t": optuna.distributions.IntDistribution(int(delta_ts.min()), int(delta_ts.max())),
    }
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for trial in trials.itertuples():
        params = {"alpha": float(trial.alpha), "delta_t": int(trial.delta_t)}
        value = 100 * float(trial.validation)
        study.add_trial(
            optuna.create_trial(params=params, distributions=distributions, value=value)
        )
    return study


def _drawn(plot: Callable[..., Any], study: optuna.Study, **options: Any) -> Axes:
    # Optuna draws by way of pyplot, which is to open no window, and sets a style for good.
    matplotlib.use("agg")
    style: list[Any] = ["default", {"figure.constrained_layout.use": True, "figure.figsize": SIZE}]
    with pyplot.style.context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        axes = cast("Axes", plot(study, **options))
    pyplot.close(axes.figure)
    return axes


def _mark(axes: Axes, place: tuple[float, int], marker: str, name: str) -> None:
    look = {"markersize": 11, "markerfacecolor": "black", "markeredgecolor": "white"}
    look |= {"linestyle": "none", "clip_on": False, "zorder": 5}
    axes.plot(*place, marker, label=name, **look)
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
