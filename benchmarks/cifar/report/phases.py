"""Training loss by phase: before the learning rate first falls, and at the end, minus Static's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from benchmarks.cifar.records import Record
from benchmarks.cifar.report.results import Group, Variant
from benchmarks.cifar.report.texts import note
from benchmarks.common.tables import table_of

REFERENCE = "static"


@dataclass(frozen=True)
class Phases:
    """Differences of one variant's training loss from Static's, paired by seed.

    Attributes:
        variant: The variant.
        early: By seed, in the last epoch before the learning rate first falls.
        late: By seed, in the last epoch.
    """

    variant: Variant
    early: pd.Series
    late: pd.Series

    @property
    def cells(self) -> dict[str, str]:
        """The cells of a table's row."""
        return {
            **self.variant.cells,
            "seeds": str(len(self.early)),
            "before the learning rate falls": _loss(self.early),
            "at the end": _loss(self.late),
        }

    @property
    def words(self) -> str:
        """Both differences in a sentence."""
        early, late = (_compared(float(one.mean())) for one in (self.early, self.late))
        return (
            f"{self.variant.title}: the training loss is {early} Static's before the learning rate "
            f"first falls, and {late} Static's at the end."
        )


def phases(group: Group, variants: Sequence[Variant] | None = None) -> Iterator[Phases]:
    """The phases of each variant that Static has runs for, of protocols with a falling rate."""
    if group.settings.get("schedule", {}).get("kind") != "step":
        return
    for variant in group.test.index if variants is None else variants:
        static = Variant(REFERENCE, variant.init, variant.density)
        own, other = (_losses(group.of(one)) for one in (variant, static))
        paired = (own - other).dropna()
        if variant.method != REFERENCE and not paired.empty:
            yield Phases(variant, paired["early"], paired["late"])


def phases_table(group: Group) -> list[str]:
    """A row for each variant that can be compared with Static."""
    rows = [one.cells for one in phases(group)]
    return [*note("phases"), *table_of(rows)] if rows else []


def _losses(records: Sequence[Record]) -> pd.DataFrame:
    """The losses at the end of each phase, a row for each seed."""
    rows = {}
    for record in records:
        curve = record["curve"]
        # Not the first epoch's rate, which is low during a warm-up.
        highest = max(epoch["lr"] for epoch in curve)
        high = [epoch for epoch in curve if epoch["lr"] == highest]
        rows[record["run"]["seed"]] = [high[-1]["train_loss"], curve[-1]["train_loss"]]
    return pd.DataFrame.from_dict(rows, orient="index", columns=["early", "late"], dtype=float)


def _loss(differences: pd.Series) -> str:
    mean = f"{differences.mean():+.3f}"
    return mean if len(differences) < 2 else f"{mean} ± {differences.std():.3f}"


def _compared(difference: float) -> str:
    size, side = f"{abs(difference):.3f}", "above" if difference > 0 else "below"
    return "the same as" if float(size) == 0 else f"{size} {side}"
