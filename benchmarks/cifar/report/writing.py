"""``report.md`` and the figures, made from the results file alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.cifar.records import Folder, Record, ResultsError, read_results
from benchmarks.cifar.report import accuracy, figures, masks, structured, tuning
from benchmarks.cifar.report.equal_flops import equal_flops, equal_flops_table
from benchmarks.cifar.report.paper import Paper, paper_of, sources
from benchmarks.cifar.report.results import Group, differing_settings, group_by_protocol
from benchmarks.cifar.report.stats import all_differences
from benchmarks.common.figures import save
from benchmarks.common.files import plain_name, write_atomic
from benchmarks.common.tables import paragraph, section

TITLE = "Sparse training on small images"
EQUAL_FLOPS = "ERK against uniform at equal FLOPs"


def write_report(results: Path, folder: Path) -> Path:
    """Write ``report.md`` and ``figures/`` into ``folder``.

    Runs that haven't ended are not in the results yet, and so not in the report: it can be made at
    any time.

    Returns:
        The path of ``report.md``.

    Raises:
        ResultsError: If there are no results yet.
    """
    records = read_results(results)
    if not records:
        raise ResultsError(f"{results} holds no finished run yet; start one with --all")
    lines = [f"# {TITLE}", ""]
    used: set[str] = set()
    groups = group_by_protocol(records)
    first: dict[str, Group] = {}
    measured = read_results(Folder(results.parent).timings)
    for group in groups:
        name = str(group.protocol["name"])
        lines += group_lines(group, Figures(group, folder, used), first.get(name), measured)
        first.setdefault(name, group)
    if any(paper_of(group) for group in groups):
        lines += ["## Sources of the published numbers", ""]
        lines += [f"- [{letter}] {name}." for letter, name in sources().items()]
    report = folder / "report.md"
    write_atomic(report, ("\n".join(lines).rstrip() + "\n").encode())
    return report


class Figures:
    """Writes the figures of one group, and the lines that show them."""

    def __init__(self, group: Group, folder: Path, used: set[str]) -> None:
        name = prefix = plain_name(group.protocol["name"])
        number = 1
        while prefix in used:
            number += 1
            prefix = f"{name}-{number}"
        used.add(prefix)
        self.label = group.protocol["label"]
        self.folder = folder
        self.prefix = prefix

    def show(self, name: str, caption: str, figure: Figure | None) -> list[str]:
        """Write a figure as PNG and SVG; the lines that show it, or none of None."""
        if figure is None:
            return []
        path = Path("figures", f"{self.prefix}-{name}")
        save(figure, self.folder / path)
        # Only an SVG's name ends differently; with_suffix would take the digits of a density off.
        return paragraph(f"![{self.label}: {caption}]({path.as_posix()}.png)")


def group_lines(
    group: Group, drawn: Figures, namesake: Group | None = None, measured: Sequence[Record] = ()
) -> list[str]:
    """Everything about one protocol, which may be another one of the name of ``namesake``."""
    protocol, paper = group.protocol, paper_of(group)
    lines = [f"## {protocol['label']}", ""]
    lines += paragraph(f"Protocol: {protocol['description']}. {len(group.records)} runs.")
    if namesake is not None:
        differing = "; ".join(differing_settings(namesake, group))
        lines += paragraph(
            f"This is not the first protocol of that name above. It differs in {differing}."
        )
    if protocol["reduced"]:
        lines += paragraph(
            f"**These numbers are reduced** ({protocol['summary']}): they are not to be compared "
            "with published ones."
        )
    sections = {
        "Test accuracy": _accuracy(group, paper, drawn),
        "The methods' order beside the paper's": accuracy.order_tables(group, paper),
        "Paired differences": all_differences(group),
        EQUAL_FLOPS: _equal_flops(group, drawn),
        "Redistribution between layers": accuracy.redistribution(group, paper),
        "Masks of other runs": accuracy.tickets(group, paper),
        "Structured sparsity": _structured(group, paper, drawn, measured),
        "Search of alpha and delta_t": _searches(group, paper, drawn),
        "Learning rate": _learning_rates(group, drawn),
        "Density of every layer": _layers(group, drawn),
        "Masks over time": _masks_over_time(group, drawn),
        "Cost and exploration": masks.cost_table(group),
        "Made with": masks.environment_lines(group),
    }
    return [*lines, *(line for item in sections.items() for line in section(*item))]


def _accuracy(group: Group, paper: Paper | None, drawn: Figures) -> list[str]:
    density, flops = figures.against_density(group), figures.against_flops(group)
    return [
        *accuracy.main_table(group, paper),
        *accuracy.main_notes(group, paper),
        *drawn.show("by-method", "accuracy by method", figures.by_method(group)),
        *drawn.show("against-density", "accuracy against density", density),
        *drawn.show("against-flops", "accuracy against FLOPs", flops),
    ]


def _equal_flops(group: Group, drawn: Figures) -> list[str]:
    found = equal_flops(group)
    methods = list(dict.fromkeys(one.method for one in found))
    figure = figures.erk_against_uniform(group, methods) if methods else None
    shown = drawn.show("equal-flops", EQUAL_FLOPS, figure)
    return [*equal_flops_table(group, found), *shown]


def _structured(
    group: Group, paper: Paper | None, drawn: Figures, measured: Sequence[Record]
) -> list[str]:
    if not structured.rows_of(group):
        return []
    machines = structured.times_of(group, measured)
    first = machines[0] if machines else None
    lines = structured.structured_table(group, paper, first)
    lines += structured.notes(paper, first)
    lines += structured.statements(group, first)
    if first is not None:
        figure = figures.against_time(group, first)
        lines += drawn.show("against-time", "accuracy against measured time", figure)
    lines += structured.structured_differences(group)
    for times in machines:
        lines += [f"#### Times on {times.machine}", ""]
        lines += structured.inference_table(group, times)
        lines += structured.training_table(group, times)
    return lines


def _searches(group: Group, paper: Paper | None, drawn: Figures) -> list[str]:
    found = tuning.searches(group)
    if not found:
        return []
    # Optuna takes a second to import, and most reports have no search.
    from benchmarks.cifar.report.search_figures import contour, importances

    lines = tuning.optimum_table(group, found, paper)
    lines += paragraph(
        "The optimum is the trial with the highest mean validation accuracy. Its difference from "
        "the reference, the protocol's own (alpha, delta_t), is of test accuracies, paired "
        "by seed."
    )
    for search in found:
        name, variant = search.variant.label, search.variant
        file = f"{variant.method}-{variant.init}-{variant.density:.3g}"
        over = f"validation accuracy over alpha and delta_t, {name}"
        weight = f"importance of alpha and delta_t, {name}"
        lines += [f"#### Trials of {name}", ""]
        lines += drawn.show(f"search-{file}", over, contour(group, search))
        lines += drawn.show(f"importance-{file}", weight, importances(group, search))
        lines += tuning.trial_table(group, search)
    return lines


def _learning_rates(group: Group, drawn: Figures) -> list[str]:
    found = tuning.sweeps(group)
    figure = figures.learning_rates(group, found) if found else None
    return [
        *tuning.sweep_table(group, found),
        *drawn.show("learning-rate", "accuracy against the learning rate", figure),
        *tuning.sweep_differences(group, found),
    ]


def _layers(group: Group, drawn: Figures) -> list[str]:
    lines = []
    for density in masks.densities(group):
        name, figure = f"{density:.3g}", figures.layer_densities(group, density)
        lines += drawn.show(f"layers-{name}", f"density of every layer, {name} in all", figure)
        lines += masks.layer_table(masks.allocations(group, density))
    return [*lines, *masks.not_recorded(group, "layers")]


def _masks_over_time(group: Group, drawn: Figures) -> list[str]:
    lines = []
    for density in masks.densities(group):
        name, figure = f"{density:.3g}", figures.masks_over_time(group, density)
        lines += drawn.show(f"masks-{name}", f"masks over time, density {name}", figure)
    return [*lines, *masks.not_recorded(group, "history")]
