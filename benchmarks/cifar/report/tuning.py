"""Runs with settings other than the protocol's: (alpha, delta_t), and learning rates."""

from __future__ import annotations

import dataclasses

import pandas as pd

from benchmarks.cifar.report.paper import Paper
from benchmarks.cifar.report.results import SEARCHED, Group, Variant
from benchmarks.cifar.report.stats import difference, difference_cells
from benchmarks.common.tables import MISSING, table_of


def varied_runs(group: Group) -> pd.DataFrame:
    """A row for each variant of a search or a sweep: its settings and its accuracy.

    A variant is ``swept`` if it was trained with another learning rate than the protocol's, or with
    the same alpha and delta_t as such a variant; these may be the protocol's own.
    """
    own = {**group.settings["sparsity"], "lr": group.settings["optimizer"]["lr"]}
    rows = []
    for variant in group.test.index:
        settings = {**own, **dict(variant.settings)}
        row = {"variant": variant, "plain": variant.plain, "seeds": len(group.of(variant))}
        row |= {name: settings[name] for name in SEARCHED}
        rows.append(row | {"validation": group.mean(variant, "accuracy.validation")})
    runs = pd.DataFrame(rows).sort_values(["plain", *SEARCHED])
    alike = [runs[name] for name in ("plain", "alpha", "delta_t")]
    runs["swept"] = (runs.lr != own["lr"]).groupby(alike).transform("any")
    return runs[runs.swept | (runs.variant != runs.plain)]


def complete(trials: pd.DataFrame) -> pd.DataFrame:
    """The trials with the most seeds; means over fewer seeds vary more."""
    return trials[trials.seeds == trials.seeds.max()]


def best(trials: pd.DataFrame) -> pd.Series:
    """The complete trial with the highest mean validation accuracy."""
    return trials.loc[complete(trials).validation.idxmax()]


def optimum_table(group: Group, trials: pd.DataFrame, paper: Paper | None) -> list[str]:
    """The protocol's own setting beside the optimum of each variant, ours and the paper's."""
    rows = []
    for variant, own in trials.groupby("plain"):
        optimum = best(own)
        row = variant.cells | {"trials": str(len(own))}
        row["reference"] = _pair(pd.Series(group.settings["sparsity"]))
        row["reference, test %"] = group.percent(variant)
        row["optimum"] = _pair(optimum)
        row["optimum, test %"] = group.percent(optimum.variant)
        row |= difference_cells(difference(group, optimum.variant, variant))
        if paper is not None:
            names = next(iter(paper.tuning.values()), {})
            row |= paper.tuning.get(variant, dict.fromkeys(names, MISSING))
        rows.append(row)
    return table_of(rows)


def settings_table(group: Group, runs: pd.DataFrame) -> list[str]:
    """A row for each variant, the best first, with its difference from the protocol's own setting.

    A learning rate is compared with the protocol's at the same alpha and delta_t.
    """
    rows = []
    for run in runs.sort_values("validation", ascending=False, kind="stable").itertuples():
        row = run.plain.cells | {"alpha": f"{run.alpha:.3f}", "delta_t": str(run.delta_t)}
        row |= {"lr": f"{run.lr:g}", "seeds": str(run.seeds)}
        row["validation %"] = group.percent(run.variant, "accuracy.validation")
        row["test %"] = group.percent(run.variant)
        rows.append(row | difference_cells(difference(group, run.variant, _own(run.variant))))
    return table_of(rows)


def _own(variant: Variant) -> Variant:
    settings = tuple(pair for pair in variant.settings if pair[0] != "lr")
    return (
        variant.plain
        if settings == variant.settings
        else dataclasses.replace(variant, settings=settings)
    )


def _pair(masks: pd.Series) -> str:
    return f"({masks.alpha:.3g}, {int(masks.delta_t)})"
