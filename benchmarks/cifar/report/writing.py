"""``report.md`` and the figures, made from the results file only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from benchmarks.cifar.records import Folder, Record, ResultsError, read_results
from benchmarks.cifar.report import accuracy, figures, masks, structured, tuning
from benchmarks.cifar.report.order import orders
from benchmarks.cifar.report.paper import SOURCES, paper_of
from benchmarks.cifar.report.phases import phases_table
from benchmarks.cifar.report.repeats import repeats_table
from benchmarks.cifar.report.results import Group, group_by_protocol
from benchmarks.cifar.report.stats import all_differences
from benchmarks.cifar.report.texts import note
from benchmarks.common.figures import save
from benchmarks.common.files import plain_name, write_atomic
from benchmarks.common.tables import paragraph, section
from benchmarks.common.words import counted


def write_report(results: Path, folder: Path) -> Path:
    """Write ``report.md`` and ``figures/`` into ``folder``; return the path of ``report.md``.

    The report can be made at any time. It leaves out runs that have not ended, because they are not
    in the results yet.

    Raises:
        ResultsError: If there are no results yet.
    """
    records = read_results(results)
    if not records:
        raise ResultsError(f"{results} has no finished run yet; start one with --all")
    lines = ["# Sparse training on small images", ""]
    used: set[str] = set()
    beside = Folder(results.parent)
    measured, repeats = read_results(beside.timings), read_results(beside.repeats)
    groups = group_by_protocol(records)
    for group in groups:
        lines += group_lines(group, Figures(group, folder, used), measured, repeats)
    if any(paper_of(group) for group in groups):
        lines += ["## Sources of the published numbers", ""]
        lines += [f"- [{letter}] {name}." for letter, name in SOURCES.items()]
    report = folder / "report.md"
    write_atomic(report, ("\n".join(lines).rstrip() + "\n").encode())
    return report


class Figures:
    """Writes the figures of one group, and the lines that show them."""

    def __init__(self, group: Group, folder: Path, used: set[str]) -> None:
        self.label, self.folder = group.protocol["label"], folder
        name = plain_name(group.protocol["name"])
        numbered = (f"{name}-{number}" for number in range(2, len(used) + 3))
        self.prefix = next(one for one in (name, *numbered) if one not in used)
        used.add(self.prefix)

    def show(self, name: str, caption: str, figure: Figure | None) -> list[str]:
        """Write a figure as PNG and SVG; return the lines that show it, none for None."""
        if figure is None:
            return []
        path = Path("figures", f"{self.prefix}-{name}")
        save(figure, self.folder / path)
        # Not with_suffix(), which would remove the digits of a density from the name.
        return paragraph(f"![{self.label}: {caption}]({path.as_posix()}.png)")


def group_lines(
    group: Group, drawn: Figures, measured: Sequence[Record] = (), repeats: Sequence[Record] = ()
) -> list[str]:
    """All sections of one protocol."""
    protocol, paper = group.protocol, paper_of(group)
    lines = [f"## {protocol['label']}", ""]
    lines += paragraph(
        f"Protocol: {protocol['description']}. {counted(len(group.records), 'run')}."
    )
    if protocol["reduced"]:
        lines += note("reduced", summary=protocol["summary"])
    order = [
        line
        for one in orders(group, paper)
        for line in [f"#### Density {one.density:.3g}", "", *one.table(), *one.words()]
    ]
    varied = tuning.varied_runs(group)
    density, flops = figures.against_density(group), figures.against_flops(group)
    sections = {
        "Test accuracy": [
            *accuracy.main_table(group, paper),
            *accuracy.main_notes(group, paper),
            *drawn.show("by-method", "accuracy by method", figures.by_method(group)),
            *drawn.show("against-density", "accuracy against density", density),
            *drawn.show("against-flops", "accuracy against FLOPs", flops),
        ],
        "The methods' order beside the paper's": order,
        "Paired differences": all_differences(group),
        "Repeated runs": repeats_table(group, repeats),
        "Training loss by phase": phases_table(group),
        "Measured times, and structured sparsity": _structured(group, drawn, measured),
        "Search of alpha and delta_t": _searches(group, drawn, varied[~varied.swept]),
        "Learning rate": tuning.settings_table(group, varied[varied.swept]),
        "Masks over time, and the density of every layer": _masks(group, drawn),
        "Cost and exploration": masks.cost_table(group),
        "Made with": masks.environment_lines(group),
    }
    return [*lines, *(line for item in sections.items() for line in section(*item))]


def _structured(group: Group, drawn: Figures, measured: Sequence[Record]) -> list[str]:
    timed = structured.times_of(group, measured)
    if not timed and not structured.rows_of(group):
        return []
    lines, paper = [], paper_of(group)
    for number, times in enumerate(timed or [None]):
        if number:
            lines += [f"#### Times on {times.machine}", ""]
        lines += structured.structured_table(group, paper, times)
        lines += structured.notes(paper, times)
        if times is not None and not number:
            figure = figures.against_time(group, times)
            lines += drawn.show("against-time", "accuracy against measured time", figure)
    return lines


def _searches(group: Group, drawn: Figures, runs: pd.DataFrame) -> list[str]:
    if runs.empty:
        return []
    lines = tuning.optimum_table(group, runs, paper_of(group)) + note("optimum")
    for variant, trials in runs.groupby("plain"):
        file = f"{variant.method}-{variant.init}-{variant.density:.3g}"
        caption = f"validation accuracy over alpha and delta_t, {variant.label}"
        lines += [f"#### Trials of {variant.label}", ""]
        lines += drawn.show(f"search-{file}", caption, figures.contour(group, variant, trials))
        lines += tuning.settings_table(group, trials)
    return lines


def _masks(group: Group, drawn: Figures) -> list[str]:
    lines = []
    for density in masks.densities(group):
        name, figure = f"{density:.3g}", figures.masks_over_time(group, density)
        lines += drawn.show(f"masks-{name}", f"masks over time, density {name}", figure)
        lines += masks.layer_table(group, density)
    return [*lines, *masks.not_recorded(group)]
