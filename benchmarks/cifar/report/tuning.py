"""The search of (alpha, delta_t), and the sweep of learning rates.

Both are found among the runs by what replaced the protocol's own settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from benchmarks.cifar.report.paper import Paper
from benchmarks.cifar.report.results import Group, Variant
from benchmarks.cifar.report.stats import Spread, difference, difference_table
from benchmarks.common.tables import MISSING, table


@dataclass(frozen=True)
class Trials:
    """All trials of one variant."""

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
    own = _masks(group, Variant("", None, None))
    # Settings that other learning rates were tried with are those of the sweep over these.
    swept = {(v.plain, *_masks(group, v)) for v in group.varied if "lr" in dict(v.settings)}
    rows = []
    for variant in group.varied:
        place = (variant.plain, *_masks(group, variant))
        if dict(variant.settings).keys() <= {"alpha", "delta_t"} and place not in swept:
            seeds, validation = len(group.of(variant)), group.mean(variant, "validation")
            rows.append((variant, *place, seeds, validation))
    columns = ["variant", "plain", "alpha", "delta_t", "seeds", "validation"]
    trials = pd.DataFrame(rows, columns=columns).sort_values(["alpha", "delta_t"])
    return [Trials(variant, own, found) for variant, found in trials.groupby("plain")]


def optimum_table(group: Group, found: Sequence[Trials], paper: Paper | None) -> list[str]:
    """The protocol's own setting beside the optimum, ours and the paper's."""
    spread = Spread(group)
    header = ["method", "init", "density", "trials", "reference", "test %", "optimum", "test %"]
    header += ["difference, points", "optimum is"]
    header += [] if paper is None else ["paper: reference %", "paper: optimum", "paper: optimum %"]
    rows = []
    for search in found:
        best = search.best
        gain = difference(group, best.variant, search.variant)
        row = [
            *search.variant.cells,
            str(len(search.trials)),
            _pair(*search.reference),
            group.percent(search.variant),
            _pair(best.alpha, best.delta_t),
            group.percent(best.variant),
            MISSING if gain is None else gain.percent(),
            spread.order(gain),
        ]
        if paper is not None:
            published = [row.cells for row in paper.tuning if row.variant == search.variant]
            row += published[0] if published else [MISSING] * 3
        rows.append(row)
    return table(header, rows)


def trial_table(group: Group, search: Trials) -> list[str]:
    """Every trial, the best first."""
    best_first = search.trials.sort_values("validation", ascending=False, kind="stable")
    rows = [
        [
            f"{trial.alpha:.3f}",
            str(trial.delta_t),
            str(trial.seeds),
            group.percent(trial.variant, "validation"),
            group.percent(trial.variant),
        ]
        for trial in best_first.itertuples()
    ]
    return table(["alpha", "delta_t", "seeds", "validation %", "test %"], rows)


@dataclass(frozen=True)
class Sweep:
    """One variant at several learning rates."""

    variant: Variant
    masks: tuple[float, int]
    by_rate: dict[float, Variant]

    @property
    def masks_title(self) -> str:
        return _pair(*self.masks)


def sweeps(group: Group) -> list[Sweep]:
    """Every variant that was run at another learning rate than the protocol's."""
    own_rate = float(group.settings["optimizer"]["lr"])
    found: dict[Variant, dict[float, Variant]] = {}
    for variant in group.varied:
        settings = dict(variant.settings)
        rate = settings.pop("lr", None)
        if rate is None:
            continue
        plain = variant.plain
        at_own = Variant(plain.method, plain.init, plain.density, tuple(settings.items()))
        by_rate = found.setdefault(at_own, {own_rate: at_own} if at_own in group else {})
        by_rate[rate] = variant
    swept = [
        Sweep(variant, _masks(group, variant), dict(sorted(by_rate.items())))
        for variant, by_rate in found.items()
    ]
    return sorted(swept, key=lambda sweep: (sweep.variant.plain.order(), sweep.masks))


def sweep_table(group: Group, found: Sequence[Sweep]) -> list[str]:
    """A column for each learning rate."""
    rates = sorted({rate for sweep in found for rate in sweep.by_rate})
    rows = []
    for sweep in found:
        cells = [
            group.percent(sweep.by_rate[rate]) if rate in sweep.by_rate else MISSING
            for rate in rates
        ]
        rows.append([*sweep.variant.plain.cells, sweep.masks_title, *cells])
    own = group.settings["optimizer"]["lr"]
    header = [f"lr {rate:g}" + (" (protocol's)" if rate == own else "") for rate in rates]
    return table(["method", "init", "density", "(alpha, delta_t)", *header], rows)


def sweep_differences(group: Group, found: Sequence[Sweep]) -> list[str]:
    """Every other learning rate against the protocol's own, paired by seed."""
    differences = [
        difference(group, variant, sweep.variant)
        for sweep in found
        for variant in sweep.by_rate.values()
    ]
    rows = difference_table(group, [one for one in differences if one is not None])
    return ["#### Minus the protocol's learning rate", "", *rows] if rows else []


def _masks(group: Group, variant: Variant) -> tuple[float, int]:
    """The alpha and delta_t in force; what repeats the protocol's is not among a run's settings."""
    found = {**group.settings["sparsity"], **dict(variant.settings)}
    return float(found["alpha"]), int(found["delta_t"])


def _pair(alpha: float, delta_t: int) -> str:
    return f"({alpha:.3g}, {delta_t})"
