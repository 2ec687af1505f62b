"""From the lines of a results file to the numbers of a report."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.cifar.protocol import METHODS
from benchmarks.cifar.results import Record

BASELINE = "static"


@dataclass(frozen=True)
class Variant:
    """A method at an init and a density; its runs differ in the seed only."""

    method: str
    init: str | None
    density: float | None

    @property
    def title(self) -> str:
        """The variant as tables and plots name it, without the density."""
        return self.method if self.init is None else f"{self.method} ({self.init})"


@dataclass(frozen=True)
class Statistic:
    """Mean and sample standard deviation of one value a seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation, None of a single value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def percent(self, *, sign: bool = False) -> str:
        """Such as ``91.27 ± 0.10``, in percent."""
        mean = f"{100 * self.mean:{'+' if sign else ''}.2f}"
        return mean if self.std is None else f"{mean} ± {100 * self.std:.2f}"


class Group:
    """All results of one protocol on one data set.

    Args:
        records: Lines of the results file, of one protocol; a run's last line counts.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.protocol: dict[str, Any] = records[-1]["protocol"]
        self.records = list({record["key"]: record for record in records}.values())
        self.variants: dict[Variant, dict[int, Record]] = {}
        for record in sorted(self.records, key=_order):
            run = record["run"]
            variant = Variant(run["method"], run["init"], run["density"])
            self.variants.setdefault(variant, {})[run["seed"]] = record

    def seeds(self, variant: Variant) -> list[int]:
        return sorted(self.variants[variant])

    def statistic(self, variant: Variant, *path: str) -> Statistic:
        """A value of each seed's record, such as ``("accuracy", "test")``."""
        runs = self.variants[variant]
        return Statistic(tuple(float(_lookup(runs[seed], path)) for seed in sorted(runs)))

    def flops_ratio(self, variant: Variant, kind: str) -> float:
        """Mean FLOPs as a multiple of the full dense network's.

        Args:
            variant: Whose.
            kind: ``"inference"``, ``"train"`` or ``"train_measured"``.
        """
        reference = "dense_inference" if kind == "inference" else "dense_train"
        own = self.statistic(variant, "flops", kind).mean
        return own / self.statistic(variant, "flops", reference).mean

    def differences(self, variant: Variant) -> dict[int, float] | None:
        """Test accuracy minus that of ``static`` with the same init, density and seed.

        Returns:
            A difference for every seed that both have, or None where there is no counterpart.
        """
        if variant.init is None or variant.method == BASELINE:
            return None
        baseline = self.variants.get(Variant(BASELINE, variant.init, variant.density), {})
        runs = self.variants[variant]
        shared = sorted(runs.keys() & baseline.keys())
        if not shared:
            return None
        return {seed: _test(runs[seed]) - _test(baseline[seed]) for seed in shared}


def group_by_protocol(records: Sequence[Record]) -> list[Group]:
    """One group for each protocol and data set, in the order of their first result."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        identity = f"{record['protocol']['name']} {record['protocol']['settings']} {record['data']}"
        groups.setdefault(identity, []).append(record)
    return [Group(members) for members in groups.values()]


def _order(record: Record) -> tuple[float, str, int]:
    run = record["run"]
    # Dense first, then by density and init, methods in their usual order.
    density = -1.0 if run["density"] is None else run["density"]
    return density, run["init"] or "", METHODS.index(run["method"])


def _test(record: Record) -> float:
    return float(record["accuracy"]["test"])


def _lookup(record: Record, path: tuple[str, ...]) -> Any:
    value: Any = record
    for name in path:
        value = value[name]
    return value
