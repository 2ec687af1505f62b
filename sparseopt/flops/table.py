"""A report in words: the table by layer, and one line that compares."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparseopt.flops.report import FlopsReport

__all__ = ["comparison_line", "layer_table"]

HEADER = ("layer", "dense", "sparse", "ratio", "share")


def layer_table(report: FlopsReport) -> str:
    """Return inference FLOPs by layer, dense and sparse, and each layer's share of the sparse."""
    rows = [(layer.name, layer.dense, layer.sparse) for layer in report.layers]
    if report.computed:
        rows.append(("(computed weights)", report.computed, report.computed))
    total = ("total", report.inference_dense, report.inference_sparse)
    cells = [
        HEADER,
        *(
            (
                name,
                f"{dense:,.0f}",
                f"{sparse:,.0f}",
                f"{sparse / dense:.4f}" if dense else "-",
                f"{sparse / report.inference_sparse:.4f}",
            )
            for name, dense, sparse in (*rows, total)
        ),
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADER))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def comparison_line(report: FlopsReport) -> str:
    """Return one line: this run as a multiple of dense, and small-dense beside it."""
    parts = [f"inference {report.inference_ratio:.3f}x"]
    if report.steps:
        parts.append(f"training {report.train_measured_ratio:.3f}x in {report.steps:,} steps")
    else:
        parts.append(f"training {report.train_ratio:.3f}x")
    if report.train_expected_ratio is not None:
        parts.append(f"{report.train_expected_ratio:.3f}x over all {report.total_steps:,}")
    return (
        f"{', '.join(parts)}, of the dense network's FLOPs; "
        f"a small dense network of as many weights: about {report.small_dense_ratio:.3f}x"
    )
