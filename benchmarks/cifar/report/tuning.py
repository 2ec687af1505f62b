"""The search of (alpha, delta_t), and the sweep of learning rates.

Both are found among the runs by what replaced the protocol's own settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from benchmarks.cifar.report.paper import Paper
from benchmarks.cifar.report.results import SEARCHED, Group, Variant, table_of
from benchmarks.cifar.report.stats import Spread, difference, difference_table
from benchmarks.common.tables import MISSING


@dataclass(frozen=True)
class Trials:
    """All trials of one variant, with the protocol's own (alpha, delta_t)."""

    variant: Variant
    reference: tuple[float, int]
    trials: pd.DataFrame

    @property
    def complete(self) -> pd.DataFrame:
        """The trials that have the most seeds; means over fewer vary more."""
        return self.trials[self.trials.seeds == self.trials.seeds.max()]

    @property
    def best(self) -> pd.Series:
        """The complete trial with the highest mean validation accuracy."""
        return self.complete.loc[self.complete.validation.idxmax()]


def searches(group: Group) -> list[Trials]:
    """The trials of every variant that has any."""
    runs = _in_force(group)
    # Settings that other learning rates were tried with are those of the sweep over these.
    trials = runs[~runs.swept & (runs.variant != runs.plain)].sort_values(["alpha", "delta_t"])
    own = group.settings["sparsity"]
    reference = float(own["alpha"]), int(own["delta_t"])
    return [Trials(variant, reference, found) for variant, found in trials.groupby("plain")]


def optimum_table(group: Group, found: Sequence[Trials], paper: Paper | None) -> list[str]:
    """The protocol's own setting beside the optimum, ours and the paper's."""
    spread, rows = Spread(group), []
    for search in found:
        best, variant = search.best, search.variant
        gain = difference(group, best.variant, variant)
        row = variant.cells
        row |= {"trials": str(len(search.trials)), "reference": _pair(*search.reference)}
        row |= {"reference, test %": group.percent(variant), "optimum": best.masks}
        row["optimum, test %"] = group.percent(best.variant)
        row["difference, points"] = MISSING if gain is None else gain.percent()
        row["optimum is"] = spread.order(gain)
        if paper is not None:
            names = next(iter(paper.tuning.values()), {})
            row |= paper.tuning.get(variant, dict.fromkeys(names, MISSING))
        rows.append(row)
    return table_of(rows)


def trial_table(group: Group, search: Trials) -> list[str]:
    """Every trial, the best first."""
    best_first = search.trials.sort_values("validation", ascending=False, kind="stable")
    return table_of(
        [
            {
                "alpha": f"{trial.alpha:.3f}",
                "delta_t": str(trial.delta_t),
                "seeds": str(trial.seeds),
                "validation %": group.percent(trial.variant, "accuracy.validation"),
                "test %": group.percent(trial.variant),
            }
            for trial in best_first.itertuples()
        ]
    )


def sweeps(group: Group) -> pd.DataFrame:
    """The runs of variants at several learning rates, the protocol's own among them."""
    runs = _in_force(group)
    return runs[runs.swept].sort_values(["plain", "masks", "lr"])


def sweep_table(group: Group, found: pd.DataFrame) -> list[str]:
    """A column for each learning rate."""
    cells = found.assign(percent=[group.percent(variant) for variant in found.variant])
    cells = cells.pivot(index=["plain", "masks"], columns="lr", values="percent").fillna(MISSING)
    own = group.settings["optimizer"]["lr"]
    cells = cells.rename(columns=lambda lr: f"lr {lr:g}" + " (protocol's)" * (lr == own))
    return table_of(
        [
            variant.cells | {"(alpha, delta_t)": masks} | row.to_dict()
            for (variant, masks), row in cells.iterrows()
        ]
    )


def sweep_differences(group: Group, found: pd.DataFrame) -> list[str]:
    """Every other learning rate against the protocol's own, paired by seed."""
    at_own = found[found.lr == group.settings["optimizer"]["lr"]]
    pairs = found.merge(at_own, on=["plain", "masks"], suffixes=("", "_own"))
    paired = (
        difference(group, *pair) for pair in zip(pairs.variant, pairs.variant_own, strict=True)
    )
    rows = difference_table(group, [one for one in paired if one is not None])
    return ["#### Minus the protocol's learning rate", "", *rows] if rows else []


def _in_force(group: Group) -> pd.DataFrame:
    """Each variant's alpha, delta_t and lr, its own or the protocol's, and whether in a sweep."""
    own = {**group.settings["sparsity"], "lr": group.settings["optimizer"]["lr"]}
    rows = []
    for variant in group.test.index:
        settings = {**own, **dict(variant.settings)}
        alpha, delta_t, rate = (settings[name] for name in SEARCHED)
        about = {"variant": variant, "plain": variant.plain, "masks": _pair(alpha, delta_t)}
        about |= {"alpha": float(alpha), "delta_t": int(delta_t), "lr": float(rate)}
        about["seeds"] = len(group.of(variant))
        rows.append(about | {"validation": group.mean(variant, "accuracy.validation")})
    runs = pd.DataFrame(rows)
    rates = runs.groupby(["plain", "alpha", "delta_t"])["lr"]
    # A variant that was trained at one rate alone, another one, is a sweep of one.
    return runs.assign(swept=(rates.transform("nunique") > 1) | (runs.lr != float(own["lr"])))


def _pair(alpha: float, delta_t: int) -> str:
    return f"({alpha:.3g}, {delta_t})"
