"""The search of (alpha, delta_t): where its optimum is, and what that is worth."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.cifar.report.comparison import Difference, Spread, difference
from benchmarks.cifar.report.differences import order_of
from benchmarks.cifar.report.markdown import names
from benchmarks.cifar.report.paper import Optimum, Paper
from benchmarks.cifar.report.summary import Group
from benchmarks.cifar.report.trials import Trials
from benchmarks.common.tables import MISSING, table


def optimum_table(group: Group, found: Sequence[Trials], paper: Paper | None) -> list[str]:
    """The protocol's own setting beside the optimum, ours and the paper's."""
    gains = {search.variant: _gain(group, search) for search in found}
    spread = Spread(group)
    header = ["method", "init", "density", "trials", "reference", "test %", "optimum", "test %"]
    header += ["difference, points", "optimum is"]
    if paper is not None:
        header += ["paper: reference %", "paper: optimum", "paper: optimum %"]
    rows = []
    for search in found:
        best, own = search.best, group.runs(search.variant)
        gain = gains[search.variant]
        row = [
            *names(search.variant),
            str(len(search.trials)),
            _pair(*search.reference),
            group.statistic(search.variant, "accuracy", "test").percent() if own else MISSING,
            _pair(best.alpha, best.delta_t),
            best.test.percent(),
            MISSING if gain is None else gain.statistic.percent(sign=True),
            MISSING if gain is None else order_of(gain, spread),
        ]
        rows.append(row + ([] if paper is None else _published(paper, search)))
    return table(header, rows)


def trial_table(search: Trials) -> list[str]:
    """Every trial, the best first."""
    rows = [
        [
            f"{trial.alpha:.3f}",
            str(trial.delta_t),
            str(len(trial.validation.values)),
            trial.validation.percent(),
            trial.test.percent(),
        ]
        for trial in sorted(search.trials, key=lambda trial: -trial.validation.mean)
    ]
    return table(["alpha", "delta_t", "seeds", "validation %", "test %"], rows)


def _gain(group: Group, search: Trials) -> Difference | None:
    return difference(group, search.best.variant, search.variant)


def _published(paper: Paper, search: Trials) -> list[str]:
    rows: list[Optimum] = [row for row in paper.tuning if row.variant == search.variant]
    if not rows:
        return [MISSING] * 3
    (row,) = rows
    return [row.reference, _pair(row.alpha, row.delta_t), f"{row.accuracy} [{row.source}]"]


def _pair(alpha: object, delta_t: int) -> str:
    written = f"{alpha:.3g}" if isinstance(alpha, float) else str(alpha)
    return f"({written}, {delta_t})"
