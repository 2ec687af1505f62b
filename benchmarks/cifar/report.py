"""``report.md`` and its figures, made from the results file alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.cifar.checkpoint import write_atomic
from benchmarks.cifar.paper import Paper
from benchmarks.cifar.plots import draw
from benchmarks.cifar.results import ResultsError, read_results
from benchmarks.cifar.summary import BASELINE, Group, Statistic, Variant, group_by_protocol


def write_report(results: Path, folder: Path) -> Path:
    """Write ``report.md`` and ``figures/`` into ``folder``; return the report's path.

    Raises:
        ResultsError: If there are no results yet.
    """
    records = read_results(results)
    if not records:
        raise ResultsError(f"{results} holds no finished run yet; start one with --all")
    parts = ["# Sparse training on small images", ""]
    for number, group in enumerate(group_by_protocol(records), start=1):
        name = group.protocol["name"]
        figure = folder / "figures" / (name if number == 1 else f"{name}-{number}")
        draw(group, figure)
        parts += group_section(group, figure.relative_to(folder).with_suffix(".png").as_posix())
    report = folder / "report.md"
    write_atomic(report, "\n".join(parts).encode())
    return report


def group_section(group: Group, figure: str) -> list[str]:
    """The lines of the report about one protocol.

    Args:
        group: Its results.
        figure: Path of its plot, relative to the report.
    """
    label = group.protocol["label"]
    paper = Paper() if group.protocol["settings"]["dataset"] == "cifar10" else None
    lines = [f"## {label}", "", f"Protocol: {group.protocol['description']}.", ""]
    if group.protocol["reduced"]:
        lines += [
            f"**These numbers are reduced** ({group.protocol['summary']}): they are not to be "
            "compared with published ones.",
            "",
        ]
    lines += [f"![{label}: accuracy by method, and against FLOPs]({figure})", ""]
    lines += ["### Test accuracy", ""]
    lines += accuracy_table(group, paper)
    lines += ["", *notes(group, paper), ""]
    pairs = paired_table(group)
    if pairs:
        lines += [f"### Paired differences from {BASELINE}", "", *pairs, ""]
    lines += ["### Cost and exploration", "", *cost_table(group), ""]
    lines += ["### Made with", "", *environment_lines(group), ""]
    return lines


def accuracy_table(group: Group, paper: Paper | None) -> list[str]:
    """Accuracy and FLOPs of every variant, with published numbers beside them."""
    header = ["method", "init", "density", "seeds", "test %", "validation %"]
    header += ["train FLOPs", "test FLOPs"]
    if paper is not None:
        header += ["published % (full protocol)", "published FLOPs"]
    rows = []
    for variant in group.variants:
        row = [
            *_names(variant),
            str(len(group.seeds(variant))),
            group.statistic(variant, "accuracy", "test").percent(),
            group.statistic(variant, "accuracy", "validation").percent(),
            f"{group.flops_ratio(variant, 'train'):.3f}x",
            f"{group.flops_ratio(variant, 'inference'):.3f}x",
        ]
        if paper is not None:
            row += [paper.accuracy(variant), paper.flops(variant)]
        rows.append(row)
    return markdown_table(header, rows)


def notes(group: Group, paper: Paper | None) -> list[str]:
    """What the columns of the accuracy table mean."""
    lines = [
        "Accuracy is the share of images classified correctly after the last epoch, mean ± sample "
        "standard deviation over the seeds. FLOPs are multiples of the full dense network's, by "
        "the methods' formulas; a single image costs the dense network "
        f"{_dense_flops(group):.3g} FLOPs.",
    ]
    if paper is not None:
        lines.append(
            f"Published numbers are of another protocol than a reduced one: {paper.protocol}. "
            "Their sources are named in `benchmarks/cifar/paper.toml`."
        )
    return lines


def paired_table(group: Group) -> list[str]:
    """Differences between runs of one seed, which share initial weights and image order."""
    rows = []
    for variant in group.variants:
        differences = group.differences(variant)
        if differences is None:
            continue
        mean = Statistic(tuple(differences.values())).percent(sign=True)
        each = ", ".join(f"{100 * value:+.2f} ({seed})" for seed, value in differences.items())
        rows.append([*_names(variant), mean, each])
    if not rows:
        return []
    return markdown_table(
        ["method", "init", "density", "mean, points", "of each seed (seed)"], rows
    )


def cost_table(group: Group) -> list[str]:
    """Sizes, measured training FLOPs, mask updates and wall time of every variant."""
    rows = []
    for variant, runs in group.variants.items():
        record = next(iter(runs.values()))
        updates = record["updates"]
        rows.append(
            [
                *_names(variant),
                f"{record['parameters']['live']:,} of {record['parameters']['total']:,}",
                f"{group.statistic(variant, 'density').mean:.4f}",
                f"{group.flops_ratio(variant, 'train_measured'):.3f}x",
                "-" if updates is None else str(updates["count"]),
                "-"
                if updates is None
                else f"{group.statistic(variant, 'updates', 'explored').mean:.3f}",
                f"{group.statistic(variant, 'seconds').mean / 60:.1f}",
            ]
        )
    header = ["method", "init", "density", "live parameters", "live density"]
    header += ["train FLOPs, measured", "mask updates", "ever live", "minutes a run"]
    return markdown_table(header, rows)


def environment_lines(group: Group) -> list[str]:
    """Versions and hardware, one line for each that differs."""
    lines: dict[str, None] = {}
    for record in group.records:
        about = record["environment"]
        versions = ", ".join(
            f"{name} {about[name]}" for name in ("sparseopt", "torch", "numpy", "python")
        )
        commit = about["git_commit"] or "unknown"
        lines[
            f"- {versions}; commit {commit}; {about['processor']}, {about['threads']} threads, "
            f"on {about['device']}"
        ] = None
    return list(lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _names(variant: Variant) -> list[str]:
    density = "-" if variant.density is None else f"{variant.density:g}"
    return [variant.method, variant.init or "-", density]


def _dense_flops(group: Group) -> float:
    return float(group.records[0]["flops"]["dense_inference"])
