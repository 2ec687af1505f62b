"""Methods for entire channels and neurons: accuracy, measured times, and FLOPs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

from benchmarks.cifar.methods import SMALL_DENSE
from benchmarks.cifar.records import Record
from benchmarks.cifar.report.accuracy import joined, paper_column
from benchmarks.cifar.report.paper import Paper
from benchmarks.cifar.report.results import Group, Variant, multiple
from benchmarks.cifar.report.texts import note
from benchmarks.common.tables import MISSING, table_of
from benchmarks.common.words import counted

#: Methods with which structured methods are compared.
COMPARED = (SMALL_DENSE, "rigl")
# Number of processors that other work may use before the notes mention it.
QUIET = 0.1


class Ratio(NamedTuple):
    """A time as a multiple of the dense network's: mean of medians, and the widest quartiles."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f}x ({self.low:.3f} to {self.high:.3f})"


class Times:
    """The times of a protocol's runs on one machine; a run has its last measured times."""

    def __init__(self, machine: str, records: Iterable[Record]) -> None:
        self.machine = machine
        self.records = {record["run_key"]: record for record in records}
        every = (one["batch"] for record in self.records.values() for one in record["inference"])
        #: Batch sizes of inference, ascending.
        self.batches = sorted(set(every))

    def of(self, group: Group, variant: Variant) -> list[Record]:
        """The times of each timed run of a variant."""
        keys = (record["key"] for record in group.of(variant))
        return [self.records[key] for key in keys if key in self.records]

    def ratio(self, group: Group, variant: Variant, batch: int | None = None) -> Ratio | None:
        """The ratio of an inference, or of a full training with its mask updates; None if untimed.

        A variant that trains for more steps takes proportionally longer.
        """
        ratios = [
            one["ratio"]
            for record in self.of(group, variant)
            for one in ([record["training"]] if batch is None else record["inference"])
            if batch in (None, one["batch"])
        ]
        if not ratios:
            return None
        length = group.recipe(variant).length if batch is None else 1
        lows, highs = ([length * one[name] for one in ratios] for name in ("q1", "q3"))
        return Ratio(length * fmean(one["median"] for one in ratios), min(lows), max(highs))

    def form(self, group: Group, variant: Variant) -> str:
        """The form that is timed in inference, and the share of the possible saving that it has."""
        forms = [record["form"] for record in self.of(group, variant)]
        kinds = ", ".join(dict.fromkeys(form["kind"] for form in forms))
        reached = [form["share_reached"] for form in forms if "share_reached" in form]
        if not reached:
            return kinds or MISSING
        if all(form["parameters"] == form["dense_parameters"] for form in forms):
            return f"{kinds}, nothing to take out"
        return f"{kinds}, {100 * fmean(reached):.0f} % of the possible saving"


def times_of(group: Group, records: Sequence[Record]) -> list[Times]:
    """The times of a protocol's runs, by machine; the one with the most runs comes first."""
    keys = {record["key"] for record in group.records}
    machines: dict[str, list[Record]] = {}
    for record in records:
        if record["run_key"] in keys:
            about, device = record["environment"], record["environment"]["device"]
            name = about["processor"] if device == "cpu" else f"{device}, {about['processor']}"
            threads = counted(about["threads"], "thread")
            machines.setdefault(f"{name}, {threads}", []).append(record)
    found = [Times(machine, lines) for machine, lines in machines.items()]
    return sorted(found, key=lambda times: -len(times.records))


def rows_of(group: Group, times: Times | None = None) -> list[Variant]:
    """The rows of the table: structured variants, Small-Dense, RigL, and all timed variants."""
    own = [variant for variant in group.variants if group.recipe(variant).leaves_structure]
    places = {(variant.init, variant.density) for variant in own}
    places |= {(None, density) for _, density in places}
    return [
        variant
        for variant in group.variants
        if variant in own
        or (variant.method in COMPARED and (variant.init, variant.density) in places)
        or (times is not None and times.of(group, variant))
    ]


def structured_table(group: Group, paper: Paper | None, times: Times | None) -> list[str]:
    """Accuracy, measured times and counted FLOPs; no column has both times and FLOPs."""
    columns: dict[str, int | None] = {"inference time": 0}
    if times is not None:
        columns = {f"inference time, batch {batch}": batch for batch in times.batches}
    rows = []
    for variant in rows_of(group, times):
        published = [] if paper is None else paper.of(variant, of_table="structured")
        row = variant.cells
        row |= {"seeds": str(len(group.of(variant))), "test %": group.percent(variant)}
        if paper is not None:
            row[paper_column(group)] = joined(published)
        for name, batch in {**columns, "training time": None}.items():
            ratio = None if times is None else times.ratio(group, variant, batch)
            row[name] = "not measured yet" if ratio is None else str(ratio)
        if times is not None:
            row["inference as"] = times.form(group, variant)
        row["inference FLOPs"] = multiple(group.inference_flops(variant))
        if paper is not None:
            walls = (one.wall_time for one in published if one.wall_time is not None)
            row['paper, "wall time" (FLOPs)'] = joined(f"{wall}x" for wall in walls)
        rows.append(row | {"train FLOPs": multiple(group.training_flops(variant))})
    return table_of(rows)


def notes(paper: Paper | None, times: Times | None) -> list[str]:
    """The paragraph that explains the columns."""
    lines = [*note("times"), *([] if paper is None else note("wall_time"))]
    if times is None:
        return [*lines, *note("no_times")]
    lines += note("measured", machine=times.machine)
    others = [record["busy_with_others"] for record in times.records.values()]
    busy = [processors for processors in others if processors is not None and processors > QUIET]
    return lines + (note("busy", busy=len(busy), all=len(others), most=max(busy)) if busy else [])
