"""The report's sections on inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.common.tables import paragraph, table
from benchmarks.structured.report.wording import fastest, made_with, times

Record = dict[str, Any]

MODELS = ("dense", "compacted", "by hand")


def inference_lines(records: Sequence[Record]) -> list[str]:
    """A subsection for each workload at each density."""
    lines = ["## Inference", ""]
    lines += paragraph(
        "Channels are dropped at random, the square root of the density staying in each group, and "
        "taken out by `compact`. *By hand* is the same model with every layer made by its "
        "constructor in that shape: what dense code of this size takes, and so the floor."
    )
    for record in records:
        lines += [f"### Inference: {record['workload']}, density {record['density']}", ""]
        lines += made_with(record)
        lines += _fastest_table(record)
        lines += paragraph("Float32 alone, milliseconds:")
        lines += _float_table(record)
        lines += _layers(record)
    return lines


def _fastest_table(record: Record) -> list[str]:
    header = ["batch", *(f"{name}, fastest" for name in MODELS)]
    header += ["compacted / by hand", "FLOP ratio", "wall-time ratio", "floor (by hand / dense)"]
    rows = []
    for one in record["inference"]:
        found = [fastest(one["milliseconds"], name) for name in MODELS]
        dense, compacted, by_hand = (value for value, _ in found)
        rows.append(
            [
                str(one["batch"]),
                *(f"{times(value)}, {way}" for value, way in found),
                f"{compacted / by_hand:.2f}",
                f"{record['flops_ratio']:.3f}",
                f"{compacted / dense:.3f}",
                f"{by_hand / dense:.3f}",
            ]
        )
    return table(header, rows)


def _float_table(record: Record) -> list[str]:
    rows = []
    for one in record["inference"]:
        dense, compacted, by_hand = (one["milliseconds"][f"{name}, float32"] for name in MODELS)
        rows.append(
            [
                str(one["batch"]),
                *(f"{value:.2f}" for value in (dense, compacted, by_hand)),
                f"{compacted / by_hand:.2f}",
                f"{compacted / dense:.3f}",
            ]
        )
    return table(["batch", *MODELS, "compacted / by hand", "ratio"], rows)


def _layers(record: Record) -> list[str]:
    lines = paragraph(
        f"The convolutions with the most multiplications, alone, batch {record['layer_batch']}, "
        "float32. Narrow layers do fewer multiplications a second, which is why time does not "
        "follow FLOPs:"
    )
    header = ["layer", "dense", "compacted", "FLOP ratio", "time ratio"]
    header += ["GFLOP/s dense", "compacted"]
    rows = []
    for layer in record["layers"]:
        taken = layer["milliseconds"]
        speeds = [
            layer[flops] * record["layer_batch"] / taken[name] / 1e6
            for flops, name in (("flops", "dense"), ("compacted_flops", "compacted"))
        ]
        rows.append(
            [
                f"`{layer['name']}`",
                *("x".join(map(str, layer[name])) for name in ("dense", "compacted")),
                f"{layer['compacted_flops'] / layer['flops']:.3f}",
                f"{taken['compacted'] / taken['dense']:.3f}",
                *(f"{speed:.0f}" for speed in speeds),
            ]
        )
    return lines + table(header, rows)
