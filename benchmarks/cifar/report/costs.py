"""What runs cost, and what they were made with."""

from __future__ import annotations

from benchmarks.cifar.records.results import Record
from benchmarks.cifar.report.markdown import multiple, names
from benchmarks.cifar.report.summary import Group, Variant, title
from benchmarks.cifar.scheduling.durations import format_duration
from benchmarks.common.environment import in_words
from benchmarks.common.tables import MISSING, paragraph, table


def cost_table(group: Group) -> list[str]:
    """Sizes, validation accuracy, measured training FLOPs, mask updates and time."""
    rows = []
    for variant, runs in group.variants.items():
        record = next(iter(runs.values()))
        rows.append(
            [
                *names(variant),
                f"{record['parameters']['live']:,} of {record['parameters']['total']:,}",
                f"{group.statistic(variant, 'density').mean:.4f}",
                group.statistic(variant, "accuracy", "validation").percent(),
                multiple(group.training_flops(variant)),
                multiple(group.training_flops(variant, "train_measured")),
                *_updates(group, variant, record),
                f"{group.statistic(variant, 'seconds').mean / 60:.1f}",
                f"{_seconds_a_step(group, variant):.3g}",
            ]
        )
    header = ["method", "init", "density", "live parameters", "live density", "validation %"]
    header += ["train FLOPs by formula", "measured", "mask updates", "ever live", "minutes a run"]
    return [
        *table([*header, "seconds a step"], rows),
        *paragraph("Times are wall time, with whatever else the machine did meanwhile."),
        *projection(group),
    ]


def environment_lines(group: Group) -> list[str]:
    """Versions and hardware, one line for each that differs."""
    lines: dict[str, int] = {}
    for record in group.records:
        line = in_words(record["environment"])
        lines[line] = lines.get(line, 0) + 1
    return [*(f"- {count} runs: {line}" for line, count in lines.items()), ""]


def projection(group: Group) -> list[str]:
    """How long full runs take at the measured pace, where the protocol is short for them."""
    steps = group.protocol.get("full_steps")
    if steps is None:
        return []
    each = ", ".join(
        f"{title(variant.method)} {format_duration(steps * _seconds_a_step(group, variant))}"
        for variant in group.variants
    )
    return paragraph(
        f"Projected from the seconds a step, evaluation included, to the {steps:,} steps of a full "
        f"run on this machine: {each}."
    )


def _seconds_a_step(group: Group, variant: Variant) -> float:
    return group.statistic_of(variant, lambda record: record["seconds"] / record["steps"]).mean


def _updates(group: Group, variant: Variant, record: Record) -> list[str]:
    if record["updates"] is None:
        return [MISSING, MISSING]
    explored = group.statistic(variant, "updates", "explored").mean
    return [str(record["updates"]["count"]), f"{explored:.3f}"]
