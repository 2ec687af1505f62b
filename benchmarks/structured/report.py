"""``report.md``, made from the results files alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.cifar.files import write_atomic

Record = dict[str, Any]


def write_report(folder: Path) -> None:
    """Read every results file in ``folder`` and write ``report.md`` there."""
    records = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    write_atomic(folder / "report.md", "\n".join(report_lines(records)).encode())


def report_lines(records: Iterable[Record]) -> list[str]:
    """The lines of the report."""
    lines = [
        "# What removed channels give in time",
        "",
        "Channels are dropped at random, the square root of the density staying in each group, and "
        "taken out by `compact`. *By hand* is the same model with every layer made by its "
        "constructor in that shape: what dense code of this size takes, and so the floor. Medians "
        "of calls in turn, in a new random order each round, in one process. *Fastest* names the "
        "fastest of float32, float32 channels-last and bfloat16 channels-last for that model; the "
        "wall-time ratio is of fastest to fastest.",
        "",
    ]
    for record in records:
        lines += _linear(record) if "linear" in record else _of_workload(record)
    return lines


def _linear(record: Record) -> list[str]:
    lines = [
        "## Linear layers of constant fan-in",
        "",
        *_made_with(record),
        "Microseconds of the fastest dense and of the fastest sparse way, and what `condense` "
        "makes of the layer.",
        "",
        "| in x out | density | rows | fastest dense | fastest sparse | speed-up | chosen |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in record["linear"]:
        (dense, dense_way), (sparse, sparse_way) = (
            min((seconds, way) for way, seconds in one[kind].items())
            for kind in ("dense", "sparse")
        )
        cells = [
            "x".join(map(str, one["shape"])),
            str(one["density"]),
            str(one["rows"]),
            f"{1e6 * dense:.0f}, {dense_way}",
            f"{1e6 * sparse:.0f}, {sparse_way}",
            f"{dense / sparse:.2f}",
            one["chosen"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _of_workload(record: Record) -> list[str]:
    lines = [
        f"## {record['workload']}, density {record['density']}",
        "",
        *_made_with(record),
        "| batch | dense, fastest | compacted, fastest | by hand, fastest | compacted / by hand | "
        "FLOP ratio | wall-time ratio | floor (by hand / dense) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_inference_row(record, one) for one in record["inference"]]
    lines += ["", "Float32 alone, milliseconds:", ""]
    lines += ["| pass | batch | dense | compacted | by hand | compacted / by hand | ratio |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for phase in ("inference", "training"):
        lines += [_float_row(phase, one) for one in record[phase]]
    lines += ["", *_layers(record), ""]
    return lines


def _made_with(record: Record) -> list[str]:
    made = record["environment"]
    machine = f"{made['processor']}, {made['threads']} threads, torch {made['torch']}"
    return [f"{machine}, commit `{made['git_commit']}`.", ""]


def _inference_row(record: Record, one: Record) -> str:
    times = one["milliseconds"]
    dense, compacted, by_hand = (
        min((value, key.split(", ", 1)[1]) for key, value in times.items() if key.startswith(name))
        for name in ("dense", "compacted", "by hand")
    )
    cells = [
        str(one["batch"]),
        *(f"{value:.2f} ms, {way}" for value, way in (dense, compacted, by_hand)),
        f"{compacted[0] / by_hand[0]:.2f}",
        f"{record['flops_ratio']:.3f}",
        f"{compacted[0] / dense[0]:.3f}",
        f"{by_hand[0] / dense[0]:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def _float_row(phase: str, one: Record) -> str:
    times = one["milliseconds"]
    dense, compacted, by_hand = (times[f"{n}, float32"] for n in ("dense", "compacted", "by hand"))
    cells = [
        phase,
        str(one["batch"]),
        *(f"{value:.2f}" for value in (dense, compacted, by_hand)),
        f"{compacted / by_hand:.2f}",
        f"{compacted / dense:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def _layers(record: Record) -> list[str]:
    lines = [
        f"The convolutions with the most multiplications, alone, batch {record['layer_batch']}, "
        "float32. Narrow layers do fewer multiplications a second, which is why time does not "
        "follow FLOPs:",
        "",
        "| layer | dense | compacted | FLOP ratio | time ratio | GFLOP/s dense | compacted |",
        "|---|---|---|---|---|---|---|",
    ]
    for layer in record["layers"]:
        times = layer["milliseconds"]
        speeds = [
            layer[flops] * record["layer_batch"] / times[name] / 1e6
            for flops, name in (("flops", "dense"), ("compacted_flops", "compacted"))
        ]
        cells = [
            f"`{layer['name']}`",
            *("x".join(map(str, layer[name])) for name in ("dense", "compacted")),
            f"{layer['compacted_flops'] / layer['flops']:.3f}",
            f"{times['compacted'] / times['dense']:.3f}",
            *(f"{speed:.0f}" for speed in speeds),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
