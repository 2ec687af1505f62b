"""The table that ``summary()`` returns: densities and live weights of each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sparseopt.masks.layer import SparseLayer

__all__ = ["summary_table"]

HEADER: Final = ("layer", "shape", "density", "target", "live", "weights", "dropped", "grown")


def summary_table(layers: Sequence[SparseLayer]) -> str:
    """Return a table by layer: shape, densities, live weights, and moves of the last update."""
    rows = [HEADER, *(_row(layer) for layer in layers), _total(layers)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _row(layer: SparseLayer) -> tuple[str, ...]:
    return (
        layer.name,
        "x".join(map(str, layer.weight.shape)),
        f"{layer.density:.4f}",
        f"{layer.target / layer.numel:.4f}",
        f"{layer.live:,}",
        f"{layer.numel:,}",
        f"{layer.last_dropped:,}",
        f"{layer.last_grown:,}",
    )


def _total(layers: Sequence[SparseLayer]) -> tuple[str, ...]:
    live = sum(layer.live for layer in layers)
    target = sum(layer.target for layer in layers)
    numel = sum(layer.numel for layer in layers)
    dropped = sum(layer.last_dropped for layer in layers)
    grown = sum(layer.last_grown for layer in layers)
    return (
        "total",
        "",
        f"{live / numel:.4f}",
        f"{target / numel:.4f}",
        f"{live:,}",
        f"{numel:,}",
        f"{dropped:,}",
        f"{grown:,}",
    )
