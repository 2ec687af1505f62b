"""The published numbers, from the one file that holds them."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from benchmarks.cifar.report.results import Group, Variant
from benchmarks.cifar.settings import read_toml

#: Decimals keep the digits of the file: as a float, 0.20 would become 0.2.
PAPER = read_toml(Path(__file__).with_suffix(".toml"), Decimal)
#: The names of the sources by their letters.
SOURCES: dict[str, str] = PAPER["sources"]


@dataclass(frozen=True)
class Published:
    """One published number of one variant; decimals keep the digits as they were printed.

    The accuracy and its deviation are in percent, FLOPs and times multiples of the dense network's.
    None stands for a number that is not printed.
    """

    variant: Variant
    accuracy: Decimal
    source: str
    std: Decimal | None = None
    train_flops: Decimal | None = None
    inference_flops: Decimal | None = None
    wall_time: Decimal | None = None

    def __str__(self) -> str:
        return f"{self.percent} [{self.source}]"

    @property
    def percent(self) -> str:
        """The accuracy and its deviation."""
        return f"{self.accuracy}" if self.std is None else f"{self.accuracy} ± {self.std}"

    def is_near(self, mean: float, std: float | None) -> str:
        """Whether the bands of one deviation around two means overlap; a dash if one is unknown."""
        if self.std is None or std is None:
            return "-"
        distance = abs(100 * mean - float(self.accuracy))
        return "yes" if distance <= float(self.std) + 100 * std else "no"


class Paper:
    """The published numbers of one data set of ``published_datasets()``.

    Example:
        >>> [str(row) for row in Paper("cifar10").of(Variant("rigl", "erk", 0.1))]
        ['92.4 ± 0.06 [R]', '92.9 [G]']
    """

    def __init__(self, dataset: str) -> None:
        table = PAPER[dataset]
        self.protocol: str = table["protocol"]
        self.dense_inference_flops: Decimal = table["dense_inference_flops"]
        self.dense_train_flops: Decimal = table["dense_train_flops"]
        self.redistribution_flops: str = table["redistribution_flops"]
        names = ("results", "original_authors", "redistribution", "structured")
        lists = ([_published(row) for row in table.get(name, [])] for name in names)
        self.main, self.original_authors, self.redistribution, self.structured = lists
        #: The optima of the searches for (alpha, delta_t), as cells of a table.
        self.tuning = {_variant(row): _optimum(row) for row in table.get("tuning", [])}

    def of(self, variant: Variant, *, of_table: str = "main") -> list[Published]:
        """Every published number of a variant; a row without an init counts for every init."""
        rows: list[Published] = getattr(self, of_table)
        if of_table == "main":
            methods = {row.variant.method for row in self.main}
            others = [row for row in self.redistribution if row.variant.method not in methods]
            rows = rows + self.original_authors + others
        names = variant.method, variant.density, variant.settings
        return [
            row
            for row in rows
            if (row.variant.method, row.variant.density, ()) == names
            and row.variant.init in (None, variant.init)
        ]


def paper_of(group: Group) -> Paper | None:
    """The published numbers for the group's data, if there are any."""
    return Paper(group.dataset) if group.dataset in published_datasets() else None


def published_datasets() -> list[str]:
    """The data sets for which ``Paper`` has numbers."""
    return [name for name, table in PAPER.items() if "results" in table]


def _published(row: dict[str, Any]) -> Published:
    named = {name: row[name] for name in row if name not in ("method", "init", "density")}
    return Published(_variant(row), **named)


def _optimum(row: dict[str, Any]) -> dict[str, str]:
    return {
        "paper: reference %": f"{row['reference']} ± {row['reference_std']}",
        "paper: optimum": f"({row['alpha']}, {row['delta_t']})",
        "paper: optimum %": f"{row['accuracy']} ± {row['std']} [{row['source']}]",
    }


def _variant(row: dict[str, Any]) -> Variant:
    density = row.get("density")
    return Variant(row["method"], row.get("init"), None if density is None else float(density))
