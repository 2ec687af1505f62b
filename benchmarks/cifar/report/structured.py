"""Whole channels and neurons beside single weights: accuracy, measured times, and FLOPs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from benchmarks.cifar.methods import RECIPES, SMALL_DENSE
from benchmarks.cifar.records import Record
from benchmarks.cifar.report.accuracy import paper_column
from benchmarks.cifar.report.paper import Paper
from benchmarks.cifar.report.results import Group, Variant, multiple
from benchmarks.cifar.report.stats import against, minus
from benchmarks.common.tables import MISSING, paragraph, table

STRUCTURED = tuple(name for name, recipe in RECIPES.items() if recipe.leaves_structure)
NOT_MEASURED = "not measured yet"
# Processors that others may keep busy before it is worth a word.
QUIET = 0.1


class Ratio:
    """A time as a multiple of the dense network's, over the runs of a variant.

    Example:
        >>> one = {"q1": 0.4, "median": 0.5, "q3": 0.6}
        >>> other = {"q1": 0.6, "median": 0.7, "q3": 0.8}
        >>> str(Ratio([one, other]))
        '0.600x (0.400 to 0.800)'
    """

    def __init__(self, quartiles: Sequence[dict[str, float]]) -> None:
        self.mean = fmean(one["median"] for one in quartiles)
        self.low = min(one["q1"] for one in quartiles)
        self.high = max(one["q3"] for one in quartiles)

    def __str__(self) -> str:
        return f"{self.mean:.3f}x ({self.low:.3f} to {self.high:.3f})"


class Times:
    """What was measured on one machine of the runs of one protocol; a run's last line counts."""

    def __init__(self, machine: str, records: Iterable[Record]) -> None:
        self.machine = machine
        self.records = {record["run_key"]: record for record in records}
        every = (one["batch"] for record in self.records.values() for one in record["inference"])
        #: Batch sizes of inference, ascending.
        self.batches = sorted(set(every))

    def of(self, group: Group, variant: Variant) -> list[Record]:
        """Of each run of a variant that has been timed."""
        keys = (record["key"] for record in group.of(variant))
        return [self.records[key] for key in keys if key in self.records]

    def inference(self, group: Group, variant: Variant, batch: int) -> Ratio | None:
        """Of an inference; None where that was not measured."""
        found = [one["ratio"] for _, one in self.at(group, variant, batch)]
        return Ratio(found) if found else None

    def training(self, group: Group, variant: Variant) -> Ratio | None:
        """Of a training step, mask updates included; None where that was not measured."""
        found = [record["training"]["ratio"] for record in self.of(group, variant)]
        return Ratio(found) if found else None

    def at(self, group: Group, variant: Variant, batch: int) -> list[tuple[Record, dict[str, Any]]]:
        """The lines that have inference of a batch size, and what they say of it."""
        return [
            (record, one)
            for record in self.of(group, variant)
            for one in record["inference"]
            if one["batch"] == batch
        ]


def times_of(group: Group, records: Sequence[Record]) -> list[Times]:
    """The times of a protocol's runs, by machine; the one with the most runs comes first."""
    keys = {record["key"] for record in group.records}
    machines: dict[str, list[Record]] = {}
    for record in records:
        if record["run_key"] in keys:
            machines.setdefault(_machine(record["environment"]), []).append(record)
    found = [Times(machine, lines) for machine, lines in machines.items()]
    return sorted(found, key=lambda times: -len(times.records))


def rows_of(group: Group) -> list[Variant]:
    """The structured methods' variants and what stands beside them; none where none was run."""
    own = [variant for variant in group.variants if variant.method in STRUCTURED]
    return group.beside(own, [SMALL_DENSE, "rigl"])


def structured_table(group: Group, paper: Paper | None, times: Times | None) -> list[str]:
    """Accuracy, measured times and counted FLOPs; the two never in one column."""
    batches = [] if times is None else times.batches
    header = ["method", "init", "density", "seeds", "test %"]
    header += [] if paper is None else [paper_column(group)]
    header += [f"inference time, batch {batch}" for batch in batches] or ["inference time"]
    header += ["training time", "inference FLOPs"]
    header += [] if paper is None else ['paper, "wall time" (FLOPs)']
    rows = []
    for variant in rows_of(group):
        published = [] if paper is None else paper.of(variant, of_table="structured")
        walls = [f"{one.wall_time}x" for one in published if one.wall_time is not None]
        row = [*variant.cells, group.seeds(variant), group.percent(variant)]
        row += [] if paper is None else ["; ".join(map(str, published)) or MISSING]
        row += [*_times(group, variant, times), multiple(group.inference_flops(variant))]
        row += [] if paper is None else ["; ".join(walls) or MISSING]
        rows.append([*row, multiple(group.training_flops(variant))])
    return table([*header, "train FLOPs"], rows)


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
    batch, lines = times.batches[-1], []
    for variant in rows_of(group):
        ratio = times.inference(group, variant, batch)
        if variant.method not in STRUCTURED or ratio is None:
            continue
        small = times.inference(group, Variant(SMALL_DENSE, None, variant.density), batch)
        beside = "" if small is None else f"; Small-Dense takes {small.mean:.2f}"
        lines.append(
            f"- {variant.title} at density {variant.density:.3g}: {ratio.mean:.2f} of the dense "
            f"network's time at batch {batch}, with {group.inference_flops(variant):.2f} of its "
            f"FLOPs{beside}."
        )
    return [*lines, ""] if lines else []


def structured_differences(group: Group) -> list[str]:
    """Structured methods minus RigL, and minus Small-Dense, by seed."""
    own = [variant for variant in group.variants if variant.method in STRUCTURED]
    return [
        *minus(group, "RigL", against(group, own, "rigl")),
        *minus(group, "Small-Dense", against(group, own, SMALL_DENSE, init=False)),
    ]


def inference_table(group: Group, times: Times) -> list[str]:
    """Milliseconds of an inference, and in which form and number format."""
    rows = []
    for variant in rows_of(group):
        for batch in times.batches:
            found = times.at(group, variant, batch)
            if found:
                records, ones = [record for record, _ in found], [one for _, one in found]
                row = [*variant.cells, str(batch), str(len(found)), _form(records)]
                row.append(f"{fmean(record['form']['parameters'] for record in records):,.0f}")
                row += [_side([one[side] for one in ones]) for side in ("own", "dense")]
                rows.append([*row, str(Ratio([one["ratio"] for one in ones]))])
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
                *variant.cells,
                str(found[0]["batch"]),
                str(len(found)),
                f"{fmean(one['own']['median'] for one in found):.1f}",
                f"{fmean(updates):.1f}" if updates else MISSING,
                f"{fmean(one['updates_a_step'] for one in found):.4f}",
                f"{fmean(one['dense']['median'] for one in found):.1f}",
                str(Ratio([one["ratio"] for one in found])),
            ]
        )
    header = ["method", "init", "density", "batch", "runs", "step, ms", "mask update, ms"]
    return table([*header, "updates a step", "dense step, ms", "ratio"], rows)


def _machine(about: dict[str, Any]) -> str:
    """Where times were measured, and with how many threads."""
    name, device, threads = about["processor"], about["device"], about["threads"]
    name = name if device == "cpu" else f"{device}, {name}"
    return f"{name}, {threads} {'thread' if threads == 1 else 'threads'}"


def _times(group: Group, variant: Variant, times: Times | None) -> list[str]:
    if times is None:
        return [NOT_MEASURED, NOT_MEASURED]
    found = [times.inference(group, variant, batch) for batch in times.batches]
    found.append(times.training(group, variant))
    return [NOT_MEASURED if ratio is None else str(ratio) for ratio in found]


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
