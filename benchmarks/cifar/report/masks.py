"""What runs recorded of their masks and of their costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from benchmarks.cifar.report.results import Group, Variant, multiple, title
from benchmarks.common.environment import in_words
from benchmarks.common.tables import MISSING, paragraph, table
from benchmarks.common.words import format_duration


@dataclass(frozen=True)
class Allocation:
    """One way to spread a density over the layers."""

    variants: list[Variant]
    densities: pd.Series

    @property
    def title(self) -> str:
        """Such as ``ERK: Static, SET, RigL``, or ``SNFS (ERK)`` of a single one."""
        if len(self.variants) == 1:
            return self.variants[0].title
        methods: dict[str, list[str]] = {}
        for variant in self.variants:
            methods.setdefault(title(variant.init or ""), []).append(title(variant.method))
        return "; ".join(f"{init}: {', '.join(names)}" for init, names in methods.items())


def allocations(group: Group, density: float) -> list[Allocation]:
    """The different allocations of one density, of the runs that recorded theirs.

    Methods that drop channels have masks for vectors too, which no other method has: only the
    layers that all have are compared.
    """
    recorded: dict[Variant, pd.DataFrame] = {}
    for variant in group.variants:
        runs = [
            {layer["name"]: layer["live"] / layer["numel"] for layer in run["layers"]}
            for run in group.of(variant)
            if variant.density == density and run.get("layers")
        ]
        if runs:
            recorded[variant] = pd.DataFrame(runs).dropna(axis="columns")
    if not recorded:
        return []
    first = next(iter(recorded.values()))
    names = [name for name in first if all(name in runs for runs in recorded.values())]
    found: dict[tuple[float, ...], list[Variant]] = {}
    for variant, runs in recorded.items():
        found.setdefault(tuple(runs[names].mean()), []).append(variant)
    return [Allocation(those, pd.Series(shares, names)) for shares, those in found.items()]


def layer_table(found: Sequence[Allocation]) -> list[str]:
    """A row for each layer and a column for each allocation."""
    if not found:
        return []
    rows = [
        [f"`{name.removesuffix('.weight')}`", *(f"{one.densities[name]:.3f}" for one in found)]
        for name in found[0].densities.index
    ]
    return table(["layer", *(one.title for one in found)], rows)


def history(group: Group, variant: Variant) -> pd.DataFrame | None:
    """Fields of ``sparseopt.UpdateRecord`` at each update, mean over the seeds."""
    updates = [
        update
        for run in group.of(variant)
        for update in run.get("history") or ()
        if not update["skipped"]
    ]
    return pd.DataFrame(updates).groupby("step").mean() if updates else None


def not_recorded(group: Group, what: str) -> list[str]:
    """A sentence that names the variants none of whose runs has recorded this, if there are any."""
    # A result with None in this place had nothing to record; an old one has no such place.
    lacking = [
        variant.label
        for variant in group.variants
        if variant.init is not None and not any(what in run for run in group.of(variant))
    ]
    return paragraph(f"Not recorded for {', '.join(lacking)}.") if lacking else []


def densities(group: Group) -> list[float]:
    """The densities at which masks can be compared: those of several variants with masks, or all.

    A study of one method at densities of its own would fill the report with figures of one line.
    """
    counts = Counter(v.density for v in group.variants if v.density and v.init is not None)
    several = sorted(density for density, count in counts.items() if count > 1)
    return several or sorted(counts)


def cost_table(group: Group) -> list[str]:
    """Sizes, validation accuracy, measured training FLOPs, mask updates and time."""
    rows = []
    for variant in group.variants:
        record = group.of(variant)[0]
        made = [MISSING, MISSING]
        if record["updates"] is not None:
            made = [str(record["updates"]["count"]), f"{group.mean(variant, 'explored'):.3f}"]
        rows.append(
            [
                *variant.cells,
                f"{record['parameters']['live']:,} of {record['parameters']['total']:,}",
                f"{group.mean(variant, 'density'):.4f}",
                group.percent(variant, "validation"),
                multiple(group.training_flops(variant)),
                multiple(group.training_flops(variant, "train_measured")),
                *made,
                f"{group.mean(variant, 'seconds') / 60:.1f}",
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


def environment_lines(group: Group) -> list[str]:
    """Versions and hardware, one line for each that differs."""
    lines = Counter(in_words(record["environment"]) for record in group.records)
    return [*(f"- {count} runs: {line}" for line, count in lines.items()), ""]


def _seconds_a_step(group: Group, variant: Variant) -> float:
    runs = group.of(variant)
    return sum(run["seconds"] / run["steps"] for run in runs) / len(runs)
