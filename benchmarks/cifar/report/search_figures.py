"""Optuna's view of a search, with the protocol in the titles."""

from __future__ import annotations

import optuna
from matplotlib.figure import Figure
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from benchmarks.cifar.report.figures import new_figure
from benchmarks.cifar.report.results import Group
from benchmarks.cifar.report.tuning import Trials

# Of fewer there is neither a plane nor a share of its variance.
FEWEST = 4
LEVELS = 12


def contour(group: Group, search: Trials) -> Figure | None:
    """Validation accuracy over alpha and delta_t; None of too few trials.

    As in the report, a circle marks the protocol's own setting and a triangle the optimum.
    """
    if not _varies(search):
        return None
    heading = f"Search of (alpha, delta_t) for {search.variant.label}"
    figure = new_figure(group, heading, (6.4, 4.8))
    axes, trials = figure.subplots(), search.complete.astype({"alpha": float, "delta_t": float})
    plane = axes.tricontourf(
        trials.alpha, trials.delta_t, 100 * trials.validation, LEVELS, cmap="Blues"
    )
    figure.colorbar(plane, label="validation accuracy, %, mean over seeds")
    axes.plot(trials.alpha, trials.delta_t, "k.", markersize=4, label="a trial")
    look = {"markerfacecolor": "black", "markeredgecolor": "white", "linestyle": "none"}
    best = (search.best.alpha, search.best.delta_t)
    axes.plot(*search.reference, "o", label="the protocol's own", markersize=11, **look)
    axes.plot(*best, "^", label="optimum", markersize=11, **look)
    axes.legend(loc="upper right", fontsize=8, framealpha=0.9)
    axes.set(xlabel="alpha", ylabel="delta_t, steps")
    return figure


def importances(group: Group, search: Trials) -> Figure | None:
    """How much of the variance each parameter explains (fANOVA); None of too few trials."""
    if not _varies(search):
        return None
    figure = new_figure(group, f"Importance for {search.variant.label}", (6.4, 2.4))
    found = get_param_importances(_study(search), evaluator=FanovaImportanceEvaluator(seed=0))
    axes = figure.subplots()
    axes.bar_label(axes.barh(list(found), list(found.values())), fmt="%.2f", padding=3)
    axes.set(xlabel="importance for the validation accuracy (fANOVA)", xlim=(0, 1.1))
    return figure


def _varies(search: Trials) -> bool:
    trials = search.complete
    counts = trials[["alpha", "delta_t", "validation"]].nunique()
    return len(trials) >= FEWEST and bool((counts > 1).all())


def _study(search: Trials) -> optuna.Study:
    trials = search.complete
    alphas, steps = trials.alpha.astype(float), trials.delta_t.astype(int)
    ranges: dict[str, BaseDistribution] = {
        "alpha": FloatDistribution(float(alphas.min()), float(alphas.max())),
        "delta_t": IntDistribution(int(steps.min()), int(steps.max())),
    }
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    for trial in trials.itertuples():
        params = {"alpha": float(trial.alpha), "delta_t": int(trial.delta_t)}
        value = 100 * float(trial.validation)
        study.add_trial(optuna.create_trial(params=params, distributions=ranges, value=value))
    return study
