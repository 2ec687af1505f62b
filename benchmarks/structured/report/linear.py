"""The report's section on linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.common.tables import paragraph, table
from benchmarks.structured.report.wording import made_with

Record = dict[str, Any]


def linear_lines(records: Sequence[Record]) -> list[str]:
    """A table of every layer at every density."""
    lines = ["## Linear layers of constant fan-in", ""]
    for record in records:
        lines += made_with(record)
        lines += paragraph(
            "Microseconds of the fastest dense and of the fastest sparse way, and what `condense` "
            "makes of the layer."
        )
        header = ["in x out", "density", "rows", "fastest dense", "fastest sparse"]
        lines += table([*header, "speed-up", "chosen"], [_row(one) for one in record["linear"]])
    return lines


def _row(one: Record) -> list[str]:
    (dense, dense_way), (sparse, sparse_way) = (
        min((seconds, way) for way, seconds in one[kind].items()) for kind in ("dense", "sparse")
    )
    return [
        "x".join(map(str, one["shape"])),
        str(one["density"]),
        str(one["rows"]),
        f"{1e6 * dense:.0f}, {dense_way}",
        f"{1e6 * sparse:.0f}, {sparse_way}",
        f"{dense / sparse:.2f}",
        one["chosen"],
    ]
