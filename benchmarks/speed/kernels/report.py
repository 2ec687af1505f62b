"""The section on kernels in the report, and the tables that it shares with the docs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.common.tables import MISSING, paragraph, section, table
from benchmarks.speed.kernels.implementations import PARTS, TRAINING
from benchmarks.speed.kernels.machine import AMX, AVX2, kind_of
from benchmarks.speed.kernels.measuring import HEADLINE
from benchmarks.speed.kernels.peers import PEERS
from benchmarks.speed.kernels.ratios import (
    BF16,
    COMPARISONS,
    FP32,
    MIXED,
    Comparison,
    break_even,
    dense_time,
    dense_total,
    is_complete,
    layer_of,
    passes_of,
    sparse_row,
    sparse_total,
    speedups,
    useful_rate,
)
from benchmarks.speed.kernels.runs import not_measured, of_workloads, ordinary, title
from benchmarks.speed.kernels.summary import summary
from benchmarks.speed.records import Record

INTRODUCTION = (
    "Single layers of known networks, with random live weights, computed by our kernels and by the "
    "fastest dense implementation for each layer and precision. The first convolution, which reads "
    "colours and stays dense, is left out. *Training* is a forward pass and the gradients of the "
    "input and of the weight, through autograd. It includes all other work of the kernels: live "
    "weights are gathered, and their gradients scattered into a dense tensor. *Inference* is a "
    "forward pass. Tensors have the layout that they would have in the network: the kernels' own "
    "layout for the kernels, and the layout of the fastest implementation for dense code. On one "
    "thread the time is the CPU time of the thread. malloc keeps freed memory, for all "
    "implementations."
)
RATIOS = (
    "Numbers are dense time over our time. *fp32 / bf16* compares our kernels in float32 with "
    "dense code in bfloat16. Break-even is the density above which dense code is faster."
)


def report_lines(records: Sequence[Record], _: Path) -> list[str]:
    """Sums over networks, limits, other libraries, then every layer."""
    workloads = of_workloads(records)
    return [
        *["## Kernels on live weights", ""],
        *paragraph(" ".join((INTRODUCTION, machine_words(records)))),
        *paragraph(" ".join(summary(records))),
        *section("Kernels: sums over networks", paragraph(RATIOS), sums_table(workloads)),
        *section("Kernels: what limits them", limits_table(records), rates_table(records)),
        *section("Kernels: other libraries", peers_lines(workloads)),
        *(line for record in workloads for line in _layer_section(record)),
    ]


def machine_words(records: Sequence[Record]) -> str:
    """The machine, its instructions, the versions, the rounds and the load, in sentences."""
    workloads = of_workloads(records)
    sentences = []
    for words in dict.fromkeys(machine_of(record) for record in workloads):
        same = [record for record in workloads if machine_of(record) == words]
        layers = [layer for record in same for layer in record["layers"]]
        rounds = sorted({layer["rounds"] for layer in layers})
        loads = [load for layer in layers for load in layer["load"]]
        counts = f"{rounds[0]}" if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
        sentences.append(
            f"Made on {words}; medians of {counts} rounds, while the load of the machine was "
            f"{min(loads):.0f} to {max(loads):.0f}."
        )
    lacking = not_measured(workloads)
    if lacking:
        sentences.append(f"Not measured, or not in full: {', '.join(lacking)}.")
    return " ".join(sentences)


def machine_of(record: Record) -> str:
    """The processor, its instructions, the versions of torch and of the kernels."""
    machine, versions = record["machine"], record["versions"]
    words = ", ".join(filter(None, (machine["processor"], machine.get("generation"))))
    return (
        f"{words}, {machine['cores']} cores ({', '.join(machine['flags'])}), torch "
        f"{versions['torch']}, kernels `{record['kernels']}`"
    )


def processor_of(record: Record) -> str:
    """The processor in a cell, because a table may have the results of several processors."""
    machine = record["machine"]
    generation: str = machine.get("generation") or machine["processor"]
    if machine["isa"] != "native":
        return f"{generation}, restricted to {machine['isa']}"
    return generation + {AMX: ", AMX", AVX2: ", AVX2 only"}.get(kind_of(record), "")


def sums_table(workloads: Sequence[Record]) -> list[str]:
    """A row for each network, pass and comparison: the ratio at each density."""
    workloads = [record for record in workloads if is_complete(record)]
    densities = sorted({one for record in workloads for one in _all_ratios(record)})
    header = ["network, batch or tokens", "processor", "", "ours / dense", "dense, ms"]
    header += [f"{density:g}" for density in densities] + ["break-even"]
    rows = []
    for record in workloads:
        for what in passes_of(record):
            for compared in COMPARISONS:
                ratios = speedups(record["layers"], what, compared)
                dense = dense_total(record["layers"], what, compared.dense)
                if dense is not None and ratios:
                    cells = [_ratio(ratios.get(density)) for density in densities]
                    about = [title(record), processor_of(record), what, compared.words]
                    rows.append([*about, _milliseconds(dense), *cells, break_even(ratios)])
    return table(header, rows)


def _milliseconds(time: float) -> str:
    return f"{time:,.0f}" if time >= 100 else f"{time:.1f}"


def _all_ratios(record: Record) -> dict[float, float]:
    return speedups(record["layers"], passes_of(record)[0], FP32)


def _ratio(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def limits_table(records: Sequence[Record]) -> list[str]:
    """The limits of a core."""
    found = [record for record in records if "limits" in record]
    rows = [
        [processor_of(record), record["variant"], name, f"{rate:.0f}"]
        for record in found
        for name, rate in record["limits"].items()
    ]
    return table(["processor", "instructions", "one core at most", "GFLOP/s"], rows)


def rates_table(records: Sequence[Record]) -> list[str]:
    """Useful GFLOP/s of the three products, over whole networks."""
    products = PARTS[1:4]
    rows = []
    for record in ordinary(records):
        for precision in ("float32", "bfloat16"):
            rates = [useful_rate(record["layers"], part, precision) for part in products]
            if None not in rates:
                about = [title(record), processor_of(record), precision]
                cells = [f"{rate:.0f}" for rate in rates if rate is not None]
                rows.append([*about, *cells, _products_alone(record, precision)])
    header = ["network, batch or tokens", "processor", "precision"]
    header += [f"{part}, GFLOP/s" for part in products]
    return table([*header, "dense time / the three in sum"], rows)


def _products_alone(record: Record, precision: str) -> str:
    """The ratio of training without autograd, gathering and scattering on our side."""
    dense = dense_total(record["layers"], TRAINING, precision)
    times = [
        sparse_total(record["layers"], part, precision, HEADLINE) or 0.0 for part in PARTS[1:4]
    ]
    return _ratio(None if dense is None else dense / sum(times))


def peers_lines(workloads: Sequence[Record]) -> list[str]:
    """The table of other libraries, its explanation, and the reasons for missing libraries."""
    missing = {
        f"{name}: {reason}": None
        for record in workloads
        for layer in record["layers"]
        for name, reason in layer["missing"].items()
        if record["versions"].get(name.lower()) != "not installed"
    }
    did_not_run = paragraph(f"These did not run. {' '.join(f'{one}.' for one in missing)}")
    return [
        *paragraph(
            "Time of the fastest dense float32 implementation over the time of each library and of "
            f"our kernels, at density {HEADLINE:g}, summed over the layers. The other libraries "
            "compute only in float32; torch's CSR and SparseLab have only linear layers."
        ),
        *peers_table(workloads),
        *(did_not_run if missing else []),
    ]


def peers_table(workloads: Sequence[Record]) -> list[str]:
    """Sparse layers of other libraries and our kernels, beside dense float32."""
    rows = []
    for record in workloads:
        layers = record["layers"]
        for what in passes_of(record):
            dense = dense_total(layers, what, "float32")
            totals = [sparse_total(layers, what, "float32", HEADLINE, name) for name in PEERS]
            own = sparse_total(layers, what, "float32", HEADLINE)
            if is_complete(record) and dense and own and any(totals):
                ratios = [dense / total if total else None for total in (*totals, own)]
                rows.append([title(record), processor_of(record), what, *map(_ratio, ratios)])
    return table(["network, batch or tokens", "processor", "", *PEERS, "ours"], rows)


def _layer_section(record: Record) -> list[str]:
    """Every layer of a workload."""
    parts = []
    if not is_complete(record):
        parts.append(
            paragraph(f"{len(record['layers'])} of {record['shapes']} shapes have been measured.")
        )
    for what in passes_of(record):
        parts += [paragraph(f"{what.capitalize()}:"), layer_table(record["layers"], what)]
    return section(f"Kernels: layers of {title(record)} ({processor_of(record)})", *parts)


def layer_table(layers: Sequence[Record], what: str) -> list[str]:
    """A row for each shape: dense times, ratios at the headline's density, break-even."""
    header = ["layer", "in the network", "dense fp32, ms", "dense bf16, ms"]
    header += [f"{compared.words} at {HEADLINE:g}" for compared in COMPARISONS]
    header += [f"break-even {compared.words}" for compared in COMPARISONS]
    return table(header, [_layer_row(one, what) for one in layers])


def _layer_row(one: Record, what: str) -> list[str]:
    ratios = [speedups([one], what, compared) for compared in COMPARISONS]
    return [
        layer_of(one).words,
        str(one["count"]),
        *(_dense_cell(one, what, precision) for precision in ("float32", "bfloat16")),
        *(_spread_cell(one, what, compared) for compared in (FP32, BF16)),
        _ratio(speedups([one], what, MIXED).get(HEADLINE)),
        *(break_even(found) if found else MISSING for found in ratios),
    ]


def _dense_cell(one: Record, what: str, precision: str) -> str:
    found = dense_time(one, what, precision)
    return MISSING if found is None else f"{found[0]:.3g}, {found[1]}"


def _spread_cell(one: Record, what: str, compared: Comparison) -> str:
    """The median ratio over the rounds, and its quartiles."""
    row = sparse_row(one, what, compared.ours, HEADLINE)
    if row is None:
        return MISSING
    median, low, high = row["speedup"]
    return f"{median:.2f} ({low:.2f} to {high:.2f})"
