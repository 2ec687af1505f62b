"""Tables of the masks and costs that runs recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

import pandas as pd

from benchmarks.cifar.records import Record
from benchmarks.cifar.report.results import Group, Variant, multiple
from benchmarks.cifar.report.texts import note
from benchmarks.common.environment import in_words
from benchmarks.common.tables import MISSING, paragraph, table_of
from benchmarks.common.words import counted, format_duration


def layer_table(group: Group, density: float) -> list[str]:
    """Density of each layer, mean over the seeds; variants with equal densities share a column.

    Only layers that all methods have are compared: methods that drop channels also mask vectors.
    """
    found: dict[Variant, pd.Series] = {}
    for variant in (one for one in group.variants if one.density == density):
        runs = [pd.DataFrame(run["layers"]) for run in group.of(variant) if run.get("layers")]
        if runs:
            every = pd.concat(runs).set_index("name")
            found[variant] = (every.live / every.numel).groupby(level=0, sort=False).mean()
    if not found:
        return []
    layers = pd.concat(found, axis="columns", join="inner")
    alike = {one: [v for v in layers if layers[v].equals(layers[one])] for one in layers}
    titles = {one: ", ".join(v.title for v in those) for one, those in alike.items()}
    return table_of(
        [
            {"layer": f"`{name.removesuffix('.weight')}`"}
            | {titles[variant]: f"{share:.3f}" for variant, share in row.items()}
            for name, row in layers.iterrows()
        ]
    )


def history(group: Group, variant: Variant) -> pd.DataFrame | None:
    """Fields of ``sparseopt.UpdateRecord`` at each update, mean over the seeds."""
    updates = [
        update
        for run in group.of(variant)
        for update in run.get("history") or ()
        if not update["skipped"]
    ]
    return pd.DataFrame(updates).groupby("step").mean() if updates else None


def not_recorded(group: Group) -> list[str]:
    """A sentence that names the variants whose runs have not recorded masks, if any."""
    # A result with None here had nothing to record; an old result lacks the key.
    lacking = [
        variant.label
        for variant in group.variants
        if variant.init is not None and not any("layers" in run for run in group.of(variant))
    ]
    return paragraph(f"Not recorded for {', '.join(lacking)}.") if lacking else []


def densities(group: Group) -> list[float]:
    """The densities at which several variants have masks; all densities if no variants do.

    Densities with one variant are left out, because a study of one method at many densities would
    fill the report with figures of one line.
    """
    counts = Counter(v.density for v in group.variants if v.density and v.init is not None)
    several = sorted(density for density, count in counts.items() if count > 1)
    return several or sorted(counts)


def cost_table(group: Group) -> list[str]:
    """Sizes, validation accuracy, measured training FLOPs, mask updates and time."""
    rows = []
    quiet = {variant: group.quiet_step(variant) for variant in group.variants}
    for variant in group.variants:
        record = group.of(variant)[0]
        sizes, updates = record["parameters"], record["updates"]
        explored = "" if updates is None else f"{group.mean(variant, 'updates.explored'):.3f}"
        rows.append(
            variant.cells
            | {
                "live parameters": f"{sizes['live']:,} of {sizes['total']:,}",
                "live density": f"{group.mean(variant, 'density'):.4f}",
                "validation %": group.percent(variant, "accuracy.validation"),
                "train FLOPs by formula": multiple(group.training_flops(variant)),
                "measured": multiple(group.training_flops(variant, "train_measured")),
                "mask updates": MISSING if updates is None else str(updates["count"]),
                "ever live": explored or MISSING,
                **_wall_times(group.timed(variant)),
            }
        )
        if any(quiet.values()):
            rows[-1]["CPU ms a step, quiet"] = (
                f"{quiet[variant]:.0f}" if quiet[variant] else MISSING
            )
    quietest = note("quiet") if any(quiet.values()) else []
    elsewhere = note("one_machine", processor=group.machine[0]) if group.machines > 1 else []
    return [*table_of(rows), *note("wall"), *elsewhere, *quietest, *projection(group)]


def projection(group: Group) -> list[str]:
    """The projected time of full runs, if the protocol is a short version of a longer one."""
    steps = group.protocol.get("full_steps")
    if steps is None:
        return []
    each = ", ".join(
        f"{variant.label} {format_duration(_full_seconds(group, variant, runs))}"
        for variant in group.variants
        if (runs := group.timed(variant))
    )
    return note("projection", steps=steps, each=each)


def _full_seconds(group: Group, variant: Variant, runs: Sequence[Record]) -> float:
    """The time of a full run of this method, which may train longer than the others."""
    steps = group.protocol["full_steps"] * group.recipe(variant).length
    return float(steps * _own_seconds_a_step(runs))


def environment_lines(group: Group) -> list[str]:
    """Versions and hardware, one line for each that differs."""
    lines = Counter(in_words(record["environment"]) for record in group.records)
    return [*(f"- {counted(count, 'run')}: {line}" for line, count in lines.items()), ""]


def _wall_times(runs: Sequence[Record]) -> dict[str, str]:
    if not runs:
        return {"minutes a run": MISSING, "seconds a step": MISSING}
    return {
        "minutes a run": f"{fmean(run['seconds'] for run in runs) / 60:.1f}",
        "seconds a step": f"{_seconds_a_step(runs):.3g}",
    }


def _seconds_a_step(runs: Sequence[Record]) -> float:
    return fmean(run["seconds"] / run["steps"] for run in runs)


def _own_seconds_a_step(runs: Sequence[Record]) -> float:
    """CPU time if it is known of all runs and they have one thread, else wall time."""
    if all("cpu" in run and run["environment"]["threads"] == 1 for run in runs):
        return fmean(run["cpu"]["seconds"] / run["steps"] for run in runs)
    return _seconds_a_step(runs)
