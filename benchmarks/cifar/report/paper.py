"""The published numbers, from the one file that holds them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from benchmarks.cifar.report.results import Group, Variant

PAPER_FILE = Path(__file__).with_name("paper.toml")


@dataclass(frozen=True)
class Published:
    """One published number of one variant; decimals keep the digits as they were printed.

    Attributes:
        variant: What was trained. Its init is None where none is printed.
        accuracy: Test accuracy in percent.
        source: Letter of the source.
        std: Its standard deviation in points, if printed.
        train_flops: Multiple of the dense network's, if printed.
        inference_flops: Multiple of the dense network's, if printed.
        wall_time: Multiple of the dense network's, if printed.
    """

    variant: Variant
    accuracy: Decimal
    source: str
    std: Decimal | None = None
    train_flops: Decimal | None = None
    inference_flops: Decimal | None = None
    wall_time: Decimal | None = None

    def __str__(self) -> str:
        deviation = "" if self.std is None else f" ± {self.std}"
        return f"{self.accuracy}{deviation} [{self.source}]"

    def is_near(self, mean: float, std: float | None) -> str:
        """Whether the bands of one deviation around two means overlap; a dash without both."""
        if self.std is None or std is None:
            return "-"
        distance = abs(100 * mean - float(self.accuracy))
        return "yes" if distance <= float(self.std) + 100 * std else "no"


@dataclass(frozen=True)
class Optimum:
    """Where a published search of (alpha, delta_t) ended, beside its reference point."""

    variant: Variant
    cells: list[str]


class Paper:
    """What has been published for one data set.

    Raises:
        KeyError: If nothing has been published for the data set; see ``published_datasets``.

    Example:
        >>> [str(row) for row in Paper("cifar10").of(Variant("rigl", "erk", 0.1))]
        ['92.4 ± 0.06 [R]', '92.9 [G]']
    """

    def __init__(self, dataset: str, path: Path = PAPER_FILE) -> None:
        table = _read(path)[dataset]
        self.model: str = table["model"]
        self.protocol: str = table["protocol"]
        self.dense_inference_flops: Decimal = table["dense_inference_flops"]
        self.dense_train_flops: Decimal = table["dense_train_flops"]
        self.redistribution_flops: str = table["redistribution_flops"]
        self.main = [_published(row) for row in table["results"]]
        self.original_authors = [_published(row) for row in table.get("original_authors", [])]
        self.redistribution = [_published(row) for row in table["redistribution"]]
        self.structured = [_published(row) for row in table["structured"]]
        self.tuning = [_optimum(row) for row in table.get("tuning", [])]

    def of(self, variant: Variant, *, of_table: str = "main") -> list[Published]:
        """Every published number of a variant; a row without an init stands for both."""
        rows: list[Published] = getattr(self, of_table)
        if of_table == "main":
            methods = {row.variant.method for row in self.main}
            others = [row for row in self.redistribution if row.variant.method not in methods]
            rows = rows + self.original_authors + others
        return [
            row
            for row in rows
            if row.variant.method == variant.method
            and row.variant.init in (None, variant.init)
            and row.variant.density == variant.density
            and not variant.settings
        ]

    def not_run(self, group: Group) -> list[Variant]:
        """Published variants that no result stands for."""
        ran = {row.variant for variant in group.variants for row in self.of(variant)}
        return list(dict.fromkeys(row.variant for row in self.main if row.variant not in ran))


def paper_of(group: Group) -> Paper | None:
    """What has been published for the group's data, if anything has."""
    return Paper(group.dataset) if group.dataset in published_datasets() else None


def published_datasets(path: Path = PAPER_FILE) -> list[str]:
    """The data sets that ``Paper`` can be asked for."""
    return [name for name, table in _read(path).items() if "results" in table]


def sources(path: Path = PAPER_FILE) -> dict[str, str]:
    """What the letters of the sources stand for."""
    found: dict[str, str] = _read(path)["sources"]
    return found


def _read(path: Path) -> dict[str, Any]:
    # As floats, 0.20 would come back as 0.2, and sums of tenths with a tail of digits.
    return tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)


def _published(row: dict[str, Any]) -> Published:
    named = {name: row[name] for name in row if name not in ("method", "init", "density")}
    return Published(_variant(row), **named)


def _optimum(row: dict[str, Any]) -> Optimum:
    reference = f"{row['reference']} ± {row['reference_std']}"
    accuracy = f"{row['accuracy']} ± {row['std']} [{row['source']}]"
    return Optimum(_variant(row), [reference, f"({row['alpha']}, {row['delta_t']})", accuracy])


def _variant(row: dict[str, Any]) -> Variant:
    density = row.get("density")
    return Variant(row["method"], row.get("init"), None if density is None else float(density))
