"""The table of accuracies, with the published numbers beside ours."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.cifar.methods import RECIPES
from benchmarks.cifar.report.paper import Paper
from benchmarks.cifar.report.results import Group, Variant, multiple, table_of
from benchmarks.cifar.report.texts import note, title
from benchmarks.common.tables import MISSING


def main_table(group: Group, paper: Paper | None) -> list[str]:
    """Every variant: accuracy and FLOPs, ours and the paper's.

    Under the full protocol, published variants that have not been run yet have a row too.
    """
    variants = list(group.variants)
    if paper is not None and not group.protocol["reduced"]:
        variants = sorted([*variants, *paper.not_run(group)])
    return table_of([_row(group, variant, paper) for variant in variants])


def main_notes(group: Group, paper: Paper | None) -> list[str]:
    """What the columns mean."""
    reduced = group.protocol["reduced"]
    dense = f"{group.records[0]['flops']['dense_inference']:,.0f} FLOPs"
    if paper is not None and not reduced:
        dense += f" (paper: {paper.dense_inference_flops})"
    lines = note("accuracy", dense=dense)
    for method in dict.fromkeys(variant.method for variant in group.variants):
        recipe = RECIPES.get(method)
        if recipe is not None and recipe.masks_from:
            lines += note("origin", title=title(method), origin=title(recipe.masks_from))
    if paper is None:
        return lines
    lines += note("published", paper=paper)
    if reduced and (missing := paper.not_run(group)):
        lines += note("not_run", variants=", ".join(variant.label for variant in missing))
    return lines


def paper_column(group: Group) -> str:
    """Heading of the published accuracies."""
    return "paper %, full protocol" if group.protocol["reduced"] else "paper %"


def joined(cells: Iterable[object]) -> str:
    """Several values in one cell, or a dash for none."""
    return "; ".join(map(str, cells)) or MISSING


def _row(group: Group, variant: Variant, paper: Paper | None) -> dict[str, str]:
    """One without results has published numbers only."""
    ran, published = variant in group, [] if paper is None else paper.of(variant)
    row = variant.cells
    row |= {"seeds": str(len(group.of(variant))), "test %": group.percent(variant)}
    if paper is not None:
        mean, std = (group.mean(variant, "accuracy.test"), group.std(variant)) if ran else (0, None)
        gaps = [f"{100 * mean - float(one.accuracy):+.2f}" for one in published]
        row[paper_column(group)] = joined(published)
        row["difference"] = joined(gaps) if ran else MISSING
        row["inside the spread"] = joined(one.is_near(mean, std) for one in published if ran)
    for kind, theirs, ours in (
        ("train", "train_flops", group.training_flops),
        ("test", "inference_flops", group.inference_flops),
    ):
        row[f"{kind} FLOPs"] = multiple(ours(variant)) if ran else MISSING
        if paper is not None:
            known = (getattr(one, theirs) for one in published)
            row[f"paper, {kind} FLOPs"] = joined(f"{value}x" for value in known if value)
    return row
