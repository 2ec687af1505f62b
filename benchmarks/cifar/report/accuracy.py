"""The table of accuracies, with the published numbers beside ours."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.cifar.report.paper import Paper
from benchmarks.cifar.report.results import Group, Variant, multiple
from benchmarks.cifar.report.texts import note, title
from benchmarks.common.tables import MISSING, table_of


def main_table(group: Group, paper: Paper | None) -> list[str]:
    """Every variant: accuracy and FLOPs, ours and the paper's."""
    return table_of(_row(group, variant, paper) for variant in group.variants)


def main_notes(group: Group, paper: Paper | None) -> list[str]:
    """The paragraph that explains the columns."""
    dense = f"{group.records[0]['flops']['dense_inference']:,.0f} FLOPs"
    if paper is not None and not group.protocol["reduced"]:
        dense += f" (paper: {paper.dense_inference_flops})"
    lines = note("accuracy", dense=dense)
    origins = {one.method: group.recipe(one).masks_from for one in group.variants}
    for method, masks_from in origins.items():
        if masks_from is not None:
            lines += note("origin", title=title(method), origin=title(masks_from))
    if paper is None:
        return lines
    lines += note("published", paper=paper)
    return lines if group.protocol["reduced"] else lines + note("difference")


def paper_column(group: Group) -> str:
    """Heading of the published accuracies."""
    return "paper %, full protocol" if group.protocol["reduced"] else "paper %"


def joined(cells: Iterable[object]) -> str:
    """Several values in one cell, or a dash for none."""
    return "; ".join(map(str, cells)) or MISSING


def _row(group: Group, variant: Variant, paper: Paper | None) -> dict[str, str]:
    published, row = [] if paper is None else paper.of(variant), variant.cells
    row |= {"seeds": str(len(group.of(variant))), "test %": group.percent(variant)}
    if paper is not None:
        row[paper_column(group)] = joined(published)
    if paper is not None and not group.protocol["reduced"]:
        mean, std = group.mean(variant, "accuracy.test"), group.std(variant)
        gaps = [f"{100 * mean - float(one.accuracy):+.2f}" for one in published]
        row["difference"] = joined(gaps)
        row["inside the spread"] = joined(one.is_near(mean, std) for one in published)
    for kind, theirs, ours in (
        ("train", "train_flops", group.training_flops),
        ("test", "inference_flops", group.inference_flops),
    ):
        row[f"{kind} FLOPs"] = multiple(ours(variant))
        if paper is not None:
            known = (getattr(one, theirs) for one in published)
            row[f"paper, {kind} FLOPs"] = joined(f"{value}x" for value in known if value)
    return row
