"""Whole channels and neurons beside single weights: accuracy, measured times, and FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from benchmarks.cifar.records.results import Record
from benchmarks.cifar.report.accuracy import paper_column
from benchmarks.cifar.report.comparison import against
from benchmarks.cifar.report.differences import difference_table
from benchmarks.cifar.report.markdown import multiple, names
from benchmarks.cifar.report.paper import Paper
from benchmarks.cifar.report.summary import Group, Variant
from benchmarks.cifar.report.times import Ratio, Times, found_at
from benchmarks.common.tables import MISSING, paragraph, table

STRUCTURED = ("rigl-struct", "srigl")
BESIDE = ("small-dense", "rigl")
NOT_MEASURED = "not measured yet"
# Processors that others may keep busy before it is worth a word.
QUIET = 0.1


def rows_of(group: Group) -> list[Variant]:
    """The structured methods' variants and what stands beside them; none where none was run."""
    own = [variant for variant in group.variants if variant.method in STRUCTURED]
    places = {(variant.init, variant.density) for variant in own}
    places |= {(None, density) for _, density in places}
    others = [v for v in group.variants if v.method in BESIDE and (v.init, v.density) in places]
    return sorted([*own, *others], key=Variant.order)


def structured_table(group: Group, paper: Paper | None, times: Times | None) -> list[str]:
    """Accuracy, measured times and counted FLOPs; the two never in one column.

    Args:
        group: The results.
        paper: What has been published for this data, if anything has.
        times: Of one machine; None where nothing was measured.
    """
    batches = [] if times is None else times.batches
    header = ["method", "init", "density", "seeds", "test %"]
    header += [] if paper is None else [paper_column(group)]
    header += [f"inference time, batch {batch}" for batch in batches] or ["inference time"]
    header += ["training time", "inference FLOPs"]
    header += [] if paper is None else ['paper, "wall time" (FLOPs)']
    header += ["train FLOPs"]
    rows = []
    for variant in rows_of(group):
        accuracy = group.statistic(variant, "accuracy", "test")
        published = [] if paper is None else paper.of(variant, of_table="structured")
        row = [*names(variant), str(len(accuracy.values)), accuracy.percent()]
        row += [] if paper is None else ["; ".join(map(str, published)) or MISSING]
        row += _times(group, variant, times)
        row.append(multiple(group.inference_flops(variant)))
        walls = [f"{one.wall_time}x" for one in published if one.wall_time is not None]
        row += [] if paper is None else ["; ".join(walls) or MISSING]
        row.append(multiple(group.training_flops(variant)))
        rows.append(row)
    return table(header, rows)


def notes(paper: Paper | None, times: Times | None) -> list[str]:
    """What the columns are."""
    lines = paragraph(
        "Times are measured, as multiples of the full dense network's, which takes turns with each "
        "network in one process: the median of the ratios of all rounds, and from lower to upper "
        "quartile, over all seeds. For inference, Small-Dense and RigL are as they are (RigL: "
        "dense tensors with zeros), RigL-Struct and SRigL are compacted, and either network has "
        "the number format, and the number of threads, that is fastest for it. Training is as the "
        "runs do it, on masked dense tensors, mask updates included. FLOPs are counted, not "
        "measured."
    )
    if paper is not None:
        lines += paragraph(
            "What the paper's table calls wall time equals its ratios of FLOPs: it stands beside "
            "ours."
        )
    if times is None:
        return [*lines, *paragraph("No times have been measured yet: `--studies timing` does it.")]
    return [*lines, *paragraph(f"Measured on {times.machine}.{_other_work(times)}")]


def statements(group: Group, times: Times | None) -> list[str]:
    """A line for each structured variant: its time beside its FLOPs."""
    if times is None or not times.batches:
        return []
    batch = times.batches[-1]
    lines = []
    for variant in rows_of(group):
        ratio = times.inference(group, variant, batch)
        if variant.method not in STRUCTURED or ratio is None:
            continue
        lines.append(
            f"- {variant.title} at density {variant.density:.3g}: {ratio.mean:.2f} of the dense "
            f"network's time at batch {batch}, with {group.inference_flops(variant):.2f} of its "
            f"FLOPs{_beside_small_dense(group, variant, times, batch)}."
        )
    return [*lines, ""] if lines else []


def structured_differences(group: Group) -> list[str]:
    """Structured methods minus RigL, and minus Small-Dense, by seed."""
    own = [variant for variant in group.variants if variant.method in STRUCTURED]
    lines = []
    for title, found in (
        ("RigL", against(group, own, "rigl")),
        ("Small-Dense", against(group, own, "small-dense", init=False)),
    ):
        if found:
            lines += [f"#### Minus {title}", "", *difference_table(group, found)]
    return lines


def inference_table(group: Group, times: Times) -> list[str]:
    """Milliseconds of an inference, and in which form and number format."""
    rows = []
    for variant in rows_of(group):
        for batch in times.batches:
            found = [(r, one) for r in times.of(group, variant) if (one := found_at(r, batch))]
            if not found:
                continue
            records, ones = [r for r, _ in found], [one for _, one in found]
            rows.append(
                [
                    *names(variant),
                    str(batch),
                    str(len(found)),
                    _form(records),
                    f"{fmean(r['form']['parameters'] for r in records):,.0f}",
                    *(_side([one[side] for one in ones]) for side in ("own", "dense")),
                    str(Ratio.over([one["ratio"] for one in ones])),
                ]
            )
    header = ["method", "init", "density", "batch", "runs", "form", "parameters"]
    return table([*header, "own, ms", "dense, ms", "ratio"], rows)


def training_table(group: Group, times: Times) -> list[str]:
    """Milliseconds of training steps, and of the mask updates among them."""
    rows = []
    for variant in rows_of(group):
        found = [record["training"] for record in times.of(group, variant)]
        if not found:
            continue
        updates = [one["update"]["median"] for one in found if one["update"]]
        rows.append(
            [
                *names(variant),
                str(found[0]["batch"]),
                str(len(found)),
                f"{fmean(one['own']['median'] for one in found):.1f}",
                f"{fmean(updates):.1f}" if updates else MISSING,
                f"{fmean(one['updates_a_step'] for one in found):.4f}",
                f"{fmean(one['dense']['median'] for one in found):.1f}",
                str(Ratio.over([one["ratio"] for one in found])),
            ]
        )
    header = ["method", "init", "density", "batch", "runs", "step, ms", "mask update, ms"]
    return table([*header, "updates a step", "dense step, ms", "ratio"], rows)


def _times(group: Group, variant: Variant, times: Times | None) -> list[str]:
    if times is None:
        return [NOT_MEASURED, NOT_MEASURED]
    found = [times.inference(group, variant, batch) for batch in times.batches]
    found.append(times.training(group, variant))
    return [NOT_MEASURED if ratio is None else str(ratio) for ratio in found]


def _beside_small_dense(group: Group, variant: Variant, times: Times, batch: int) -> str:
    ratio = times.inference(group, Variant("small-dense", None, variant.density), batch)
    return "" if ratio is None else f"; Small-Dense takes {ratio.mean:.2f}"


def _other_work(times: Times) -> str:
    every = [record["busy_with_others"] for record in times.records.values()]
    busy = [processors for processors in every if processors is not None and processors > QUIET]
    if not busy:
        return ""
    return (
        f" While {len(busy)} of {len(every)} networks were measured, other work kept up to "
        f"{max(busy):.1f} processors busy: these ratios are less certain than their quartiles say."
    )


def _form(records: Sequence[Record]) -> str:
    forms = [record["form"] for record in records]
    kinds = ", ".join(dict.fromkeys(form["kind"] for form in forms))
    reached = [form["share_reached"] for form in forms if "share_reached" in form]
    if not reached:
        return kinds
    if all(form["parameters"] == form["dense_parameters"] for form in forms):
        return f"{kinds}, nothing to take out"
    return f"{kinds}, {100 * fmean(reached):.0f} % of the possible saving"


def _side(sides: Sequence[dict[str, Any]]) -> str:
    ways = ", ".join(dict.fromkeys(str(side["way"]) for side in sides))
    return f"{fmean(side['milliseconds']['median'] for side in sides):.2f}, {ways}"
