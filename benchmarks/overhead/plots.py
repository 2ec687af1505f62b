"""The figure of the report: time of an ordinary step, and memory between steps."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.common.words import counted
from benchmarks.overhead.contenders import PLAIN, REFERENCE
from benchmarks.overhead.results import Entry, Results, threads
from benchmarks.overhead.tables import ordinary_step
from benchmarks.overhead.workloads import WORKLOADS

#: The model and the density of the figure.
LARGE, DENSITY = "gpt", 0.1
COLORS = {"state": "tab:blue", "index": "tab:orange", "masks": "tab:green", "other": "tab:red"}


def cost_figure(results: Results) -> Figure | None:
    """A row for each optimizer: times on the left, bytes on the right; None without results.

    An optimizer that was measured with several numbers of threads is shown with the most.
    """
    # Entries are sorted by optimizer, then by threads.
    found = {entry["optimizer"]: entry for entry in results.of("steps", LARGE, DENSITY)}
    entries = list(found.values())
    if not entries:
        return None
    figure = Figure(figsize=(11, 0.6 + 2.9 * len(entries)), layout="constrained")
    rows = figure.subplots(len(entries), 2, squeeze=False)
    title = f"{WORKLOADS[LARGE].title}, {entries[0]['parameters']:,} parameters"
    figure.suptitle(f"{title}, density {DENSITY:g}", fontsize=10)
    for entry, (left, right) in zip(entries, rows, strict=True):
        names = [name for name in entry["contenders"] if name != REFERENCE]
        _times(left, entry, names)
        _bytes(right, entry, names)
        left.set_title(f"{entry['optimizer']}, {counted(threads(entry), 'thread')}", fontsize=9)
    return figure


def _times(axes: Axes, entry: Entry, names: list[str]) -> None:
    """Ordinary step with its masking as a bar, the update as a mark, both as multiples of plain."""
    for row, name in enumerate(names):
        times = entry["contenders"][name]
        ordinary = ordinary_step(times)
        if ordinary is not None:
            step = times["step"]["ratio"]
            low, high = step["median"] - step["q1"], step["q3"] - step["median"]
            axes.barh(row, ordinary, color="tab:cyan")
            axes.barh(row, step["median"], xerr=[[low], [high]], color="tab:blue", capsize=2)
        if times["update"]["ratio"] is not None:
            axes.plot(times["update"]["ratio"]["median"], row, "D", color="tab:gray")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(
        "x plain step(): dark step() with quartiles, light masking, diamond mask update", fontsize=8
    )


def _bytes(axes: Axes, entry: Entry, names: list[str]) -> None:
    for row, name in enumerate(names):
        held, left = entry["contenders"][name]["bytes"], 0.0
        for kind, color in COLORS.items():
            size = held[kind] / entry["contenders"][PLAIN]["bytes"]["state"]
            axes.barh(row, size, left=left, color=color, label=kind if row == 0 else None)
            left += size
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_yticks([])
    axes.invert_yaxis()
    axes.set_xlabel("bytes held between steps, x plain optimizer state", fontsize=8)
    axes.legend(fontsize=7)
