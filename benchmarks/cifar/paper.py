"""The published numbers, from the one file that holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.cifar.protocol import read_toml
from benchmarks.cifar.summary import Variant

PAPER_FILE = Path(__file__).with_name("paper.toml")


class Paper:
    """What has been published for CIFAR-10 with WRN-22-2.

    Args:
        path: The data file.
    """

    def __init__(self, path: Path = PAPER_FILE) -> None:
        table = read_toml(path)
        self.protocol: str = table["protocol"]
        self._rows: list[dict[str, Any]] = table["results"]

    def accuracy(self, variant: Variant) -> str:
        """Every published accuracy of a variant with its source, or an empty string."""
        cells = []
        for row in self._matching(variant):
            deviation = f" ± {row['std']}" if "std" in row else ""
            cells.append(f"{row['accuracy']}{deviation} [{row['source']}]")
        return "; ".join(cells)

    def flops(self, variant: Variant) -> str:
        """The published training and inference FLOPs as multiples of dense, or an empty string."""
        for row in self._matching(variant):
            if "train_flops" in row:
                return f"{row['train_flops']:.2f}, {row['inference_flops']:.2f}"
        return ""

    def _matching(self, variant: Variant) -> list[dict[str, Any]]:
        # A row without an init (pruning's) is published for the method as such.
        return [
            row
            for row in self._rows
            if row["method"] == variant.method
            and row.get("init") in (None, variant.init)
            and row.get("density") == variant.density
        ]
