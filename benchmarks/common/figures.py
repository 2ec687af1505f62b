"""The common parts of all benchmarks' figures: the legend, and the files."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common.files import write_atomic

RESOLUTION = 150


def legend_beside(figure: Figure, panels: Sequence[Axes]) -> None:
    """Add one legend for all panels, to the right of the figure."""
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside right center",
        fontsize=8,
        frameon=False,
    )


#: No date and no version, so that the same results give the same file each time.
METADATA = {"png": {"Software": None}, "svg": {"Date": None}}


def save(figure: Figure, path: Path, formats: Iterable[str] = tuple(METADATA)) -> None:
    """Write ``path.png`` and ``path.svg``; the same figure gives the same bytes."""
    for suffix in formats:
        buffer = io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "sparseopt"}):
            figure.savefig(buffer, format=suffix, dpi=RESOLUTION, metadata=METADATA[suffix])
        write_atomic(path.with_name(f"{path.name}.{suffix}"), buffer.getvalue())
