"""The section on full training steps in the report, and the tables that it shares with the docs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.tables import MISSING, paragraph, section, table
from benchmarks.speed.kernels.report import machine_of, processor_of
from benchmarks.speed.records import Record
from benchmarks.speed.steps.figure import BF16, FP32
from benchmarks.speed.steps.workloads import WORKLOADS

INTRODUCTION = (
    "Full training steps: forward pass, backward pass and optimizer. Dense models are "
    "channels-last and have the plain optimizer. Sparse models are the same models with "
    "`SparseOptimizer` (RigL) and `speed_up`, whose choice is in the results files. Models take "
    "turns in one process. Steps that update masks, one in a hundred or fewer, take as long as "
    "dense steps, and are not timed. *bf16* is autocast, and is left out on processors without "
    "instructions for it. The quartiles of the ratio over the rounds are in brackets."
)
OWN = "speed_up, "


def report_lines(records: Sequence[Record], _: Path) -> list[str]:
    """The table of all cases, the table of other libraries, and the choice for each case."""
    return [
        *["## Full training steps on live weights", ""],
        *paragraph(f"{INTRODUCTION} {machine_words(records)}"),
        *steps_table(records),
        *section("Full training steps: other libraries", peers_table(records)),
        *(line for record in in_order(records) for line in _choice(record)),
    ]


def in_order(records: Sequence[Record]) -> list[Record]:
    """The records by number of threads, network, distribution and density."""
    order = list(WORKLOADS)
    found = [record for record in records if "plan" in record]

    def place(record: Record) -> tuple[int, int, bool, float]:
        workload = order.index(record["workload"])
        return record["threads"], workload, record["init"] == "erk", record["density"]

    return sorted(found, key=place)


def machine_words(records: Sequence[Record]) -> str:
    """The machines, the rounds, the load and the clock of the records, in sentences."""
    found = in_order(records)
    machines = "; ".join(dict.fromkeys(map(machine_of, found)))
    rounds = sorted({record["rounds"] for record in found})
    loads = [record["load"] for record in found]
    return (
        f"Made on {machines}; medians of {rounds[0]} to {rounds[-1]} rounds, while the load of the "
        f"machine was {min(loads):.0f} to {max(loads):.0f}. On one thread the time is the CPU time "
        "of the thread, on more threads it is wall time. Cores share a cache and the memory, so a "
        "busy neighbour slows all steps, and sparse steps more than dense steps. malloc keeps "
        "freed memory, for dense code and for ours."
    )


def steps_table(records: Sequence[Record]) -> list[str]:
    """A row for each case and each precision of our models."""
    header = ["network, batch", "density", "processor", "threads"]
    header += ["dense fp32, ms", "dense bf16, ms"]
    header += ["ours", "ms", "faster than dense fp32", "faster than dense bf16"]
    rows = []
    for record in in_order(records):
        times = record["milliseconds"]
        for name, ratios in record["speedup"].items():
            if name.startswith(OWN):
                ours = "bf16" if name.endswith(BF16) else "fp32"
                rows.append(
                    [
                        f"{record['title']}, {record['batch']}",
                        f"{record['init']} {record['density']:g}",
                        processor_of(record),
                        str(record["threads"]),
                        *(_ms(times.get(f"dense, {precision}")) for precision in (FP32, BF16)),
                        ours,
                        _ms(times[name]),
                        *(_ratio(ratios.get(precision)) for precision in (FP32, BF16)),
                    ]
                )
    return table(header, rows)


def peers_table(records: Sequence[Record]) -> list[str]:
    """Other libraries and ours, beside dense float32."""
    rows = []
    for record in in_order(records):
        ratios = record["speedup"]
        peers = [name for name in ratios if not name.startswith(OWN)]
        for name in [*peers, *record["missing"]]:
            found = _ratio(ratios[name][FP32]) if name in ratios else record["missing"][name]
            rows.append(
                [
                    f"{record['title']}, {record['batch']}",
                    f"{record['init']} {record['density']:g}",
                    f"{name} {record['versions'][name.lower()]}",
                    found,
                    *(_ratio(ratios.get(f"{OWN}{one}", {}).get(FP32)) for one in (FP32, BF16)),
                ]
            )
    header = ["network, batch", "density", "library", "faster than dense fp32"]
    return table([*header, "ours, fp32", "ours, bf16"], rows)


def _choice(record: Record) -> list[str]:
    """The printed report of `speed_up`."""
    title = f"{record['title']}, {record['init']} {record['density']:g}"
    threads = "" if record["threads"] == 1 else f", {record['threads']} threads"
    *_, said = record["report"].values()  # the fastest precision of the processor is the last
    return section(
        f"Choice: {title}{threads} ({processor_of(record)})", ["```text", *said, "```", ""]
    )


def _ms(quartiles: Sequence[float] | None) -> str:
    return MISSING if quartiles is None else f"{quartiles[0]:,.0f}"


def _ratio(quartiles: Sequence[float] | None) -> str:
    if quartiles is None:
        return MISSING
    median, low, high = quartiles
    return f"{median:.2f} ({low:.2f} to {high:.2f})"
