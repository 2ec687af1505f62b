"""``report.md``, ``report.html`` and the figures, made from the results file alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.cifar.records.folder import Folder
from benchmarks.cifar.records.results import Record, ResultsError, read_results
from benchmarks.cifar.report import (
    accuracy,
    costs,
    differences,
    equal_flops,
    layers,
    structured,
    sweep,
    topics,
    tuning,
)
from benchmarks.cifar.report.figures import accuracy as accuracy_figures
from benchmarks.cifar.report.figures import curves, masks, style
from benchmarks.cifar.report.figures import times as time_figures
from benchmarks.cifar.report.page import html_page
from benchmarks.cifar.report.paper import Paper, published_datasets, sources
from benchmarks.cifar.report.summary import Group, differing_settings, group_by_protocol
from benchmarks.cifar.report.times import times_of
from benchmarks.cifar.report.trials import searches
from benchmarks.common.figures import save
from benchmarks.common.files import plain_name, write_atomic
from benchmarks.common.tables import paragraph, section

TITLE = "Sparse training on small images"


def write_report(results: Path, folder: Path) -> Path:
    """Write ``report.md``, ``report.html`` and ``figures/`` into ``folder``.

    Runs that haven't ended are not in the results yet, and so not in the report: it can be made at
    any time.

    Args:
        results: The results file. Protocols are told apart, and never in one table. Measured times
            are in a file beside it.
        folder: Where to.

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
    if any(_paper(group) for group in groups):
        lines += ["## Sources of the published numbers", ""]
        lines += [f"- [{letter}] {name}." for letter, name in sources().items()]
    text = "\n".join(lines).rstrip() + "\n"
    report = folder / "report.md"
    write_atomic(report, text.encode())
    write_atomic(folder / "report.html", html_page(TITLE, text, folder).encode())
    return report


class Figures:
    """Writes the figures of one group, and the lines that show them.

    Args:
        group: Whose.
        folder: The report's folder; figures go into ``figures/`` there.
        used: Beginnings of file names that are taken, to which one is added.
    """

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
        """Write a figure as PNG and SVG; the lines that show it, or none of None.

        Args:
            name: End of the file's name.
            caption: What it shows, for those who cannot see it.
            figure: The figure.
        """
        if figure is None:
            return []
        path = Path("figures", f"{self.prefix}-{name}")
        save(figure, self.folder / path)
        # Only an SVG's name ends differently; with_suffix would take the digits of a density off.
        return paragraph(f"![{self.label}: {caption}]({path.as_posix()}.png)")


def group_lines(
    group: Group,
    figures: Figures,
    namesake: Group | None = None,
    measured: Sequence[Record] = (),
) -> list[str]:
    """Everything about one protocol.

    Args:
        group: Its results.
        figures: Writes its figures.
        namesake: The first protocol of the same name, if this is another one.
        measured: Measured times, of this and other protocols.
    """
    protocol = group.protocol
    paper = _paper(group)
    lines = [f"## {protocol['label']}", ""]
    lines += paragraph(f"Protocol: {protocol['description']}. {len(group.records)} runs.")
    if namesake is not None:
        lines += paragraph(
            "This is not the first protocol of that name above. It differs in "
            f"{'; '.join(differing_settings(namesake, group))}."
        )
    if protocol["reduced"]:
        lines += paragraph(
            f"**These numbers are reduced** ({protocol['summary']}): they are not to be compared "
            "with published ones."
        )
    lines += _accuracy_sections(group, paper, figures)
    lines += section("Redistribution between layers", topics.redistribution(group, paper))
    lines += section("Masks of other runs", topics.tickets(group, paper))
    lines += _structured_section(group, paper, figures, measured)
    lines += _search_section(group, paper, figures)
    lines += _sweep_section(group, figures)
    lines += _mask_sections(group, figures)
    lines += section("Cost and exploration", costs.cost_table(group))
    lines += section("Made with", costs.environment_lines(group))
    return lines


def _paper(group: Group) -> Paper | None:
    return Paper(group.dataset) if group.dataset in published_datasets() else None


def _accuracy_sections(group: Group, paper: Paper | None, figures: Figures) -> list[str]:
    lines = section(
        "Test accuracy",
        accuracy.main_table(group, paper),
        accuracy.main_notes(group, paper),
        figures.show("by-method", "accuracy by method", accuracy_figures.by_method(group)),
        figures.show(
            "against-density",
            "accuracy against density",
            accuracy_figures.against_density(group),
        ),
        figures.show(
            "against-flops", "accuracy against FLOPs", accuracy_figures.against_flops(group)
        ),
    )
    if paper is not None:
        tables = accuracy.order_tables(group, paper)
        lines += section("The methods' order beside the paper's", tables)
    lines += section("Paired differences", differences.all_differences(group))
    equal = equal_flops.equal_flops(group)
    if equal:
        methods = list(dict.fromkeys(one.method for one in equal))
        drawn = curves.erk_against_uniform(group, methods)
        lines += section(
            "ERK against uniform at equal FLOPs",
            equal_flops.equal_flops_table(group, equal),
            figures.show("equal-flops", "ERK against uniform at equal FLOPs", drawn),
        )
    return lines


def _structured_section(
    group: Group, paper: Paper | None, figures: Figures, measured: Sequence[Record]
) -> list[str]:
    if not structured.rows_of(group):
        return []
    machines = times_of(group, measured)
    first = machines[0] if machines else None
    lines = structured.structured_table(group, paper, first)
    lines += structured.notes(paper, first)
    lines += structured.statements(group, first)
    if first is not None:
        drawn = time_figures.against_time(group, structured.rows_of(group), first)
        lines += figures.show("against-time", "accuracy against measured time", drawn)
    lines += structured.structured_differences(group)
    for times in machines:
        lines += [f"#### Times on {times.machine}", ""]
        lines += structured.inference_table(group, times)
        lines += structured.training_table(group, times)
    return section("Structured sparsity", lines)


def _search_section(group: Group, paper: Paper | None, figures: Figures) -> list[str]:
    found = searches(group)
    if not found:
        return []
    # Optuna takes a second to import, and most reports have no search.
    from benchmarks.cifar.report.figures import search as search_figures

    lines = tuning.optimum_table(group, found, paper)
    lines += paragraph(
        "The optimum is the trial with the highest mean validation accuracy. Its difference from "
        "the reference, the protocol's own (alpha, delta_t), is of test accuracies, paired "
        "by seed."
    )
    for search in found:
        name = style.label(search.variant)
        file = "-".join(str(part) for part in (search.variant.method, search.variant.init))
        file += f"-{search.variant.density:.3g}"
        lines += [f"#### Trials of {name}", ""]
        lines += figures.show(
            f"search-{file}",
            f"validation accuracy over alpha and delta_t, {name}",
            search_figures.contour(group, search),
        )
        lines += figures.show(
            f"importance-{file}",
            f"importance of alpha and delta_t, {name}",
            search_figures.importances(group, search),
        )
        lines += tuning.trial_table(search)
    return section("Search of alpha and delta_t", lines)


def _sweep_section(group: Group, figures: Figures) -> list[str]:
    found = sweep.sweeps(group)
    if not found:
        return []
    return section(
        "Learning rate",
        sweep.sweep_table(group, found),
        figures.show(
            "learning-rate",
            "accuracy against the learning rate",
            curves.learning_rates(group, found),
        ),
        sweep.sweep_differences(group, found),
    )


def _mask_sections(group: Group, figures: Figures) -> list[str]:
    by_layer, over_time = [], []
    for density in layers.densities(group):
        name = f"{density:.3g}"
        by_layer += figures.show(
            f"layers-{name}",
            f"density of every layer, {name} in all",
            masks.layer_densities(group, density),
        )
        by_layer += layers.layer_table(group, density)
        over_time += figures.show(
            f"masks-{name}",
            f"masks over time, density {name}",
            masks.over_time(group, density),
        )
    return [
        *section("Density of every layer", by_layer, layers.not_recorded(group, "layers")),
        *section("Masks over time", over_time, layers.not_recorded(group, "history")),
    ]
