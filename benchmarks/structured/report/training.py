"""The report's section on training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.common.tables import paragraph, table
from benchmarks.structured.report.wording import fastest, made_with, times

Record = dict[str, Any]

#: Steps from one mask update to the next.
DELTA_T = 100
MODELS = ("dense", "masked", "compacted", "by hand")


def training_lines(records: Sequence[Record]) -> list[str]:
    """A subsection for each workload at each density."""
    lines = ["## Training", ""]
    lines += paragraph(
        "Whole training steps: forward and backward pass and SGD with momentum. *Masked* is "
        "`rigl-struct`; *compacted* is the same in `CompactedTraining`, which computes dropped "
        "channels in update steps alone; *by hand* is as above. A step on average is of "
        f"{DELTA_T - 1} ordinary steps and an update step, in which the compacted model becomes "
        "whole and small again; a dense model and one by hand have no update steps."
    )
    for record in records:
        lines += [f"### Training: {record['workload']}, density {record['density']}", ""]
        lines += made_with(record)
        lines += _fastest_table(record)
        lines += paragraph("Each way, milliseconds:")
        lines += _all_ways(record)
    return lines


def average_step(times: Mapping[str, float], model: str, way: str) -> float:
    """Return the milliseconds of a step on average over ``DELTA_T`` of them."""
    step = times[f"{model}, {way}"]
    pair = times.get(f"{model} pair, {way}")
    return step if pair is None else ((DELTA_T - 2) * step + pair) / DELTA_T


def average_steps(times: Mapping[str, float]) -> dict[str, float]:
    """Return the same of every model in every way, by ``"model, way"``."""
    keys = (key.split(", ", 1) for key in times)
    return {
        f"{model}, {way}": average_step(times, model, way) for model, way in keys if model in MODELS
    }


def _fastest_table(record: Record) -> list[str]:
    header = ["batch", *(f"{name}, fastest" for name in MODELS)]
    header += ["compacted / masked", "compacted / dense", "floor (by hand / dense)"]
    rows = []
    for one in record["training"]:
        found = [fastest(average_steps(one["milliseconds"]), name) for name in MODELS]
        dense, masked, compacted, by_hand = (value for value, _ in found)
        rows.append(
            [
                str(one["batch"]),
                *(f"{times(value)}, {way}" for value, way in found),
                f"{compacted / masked:.3f}",
                f"{compacted / dense:.3f}",
                f"{by_hand / dense:.3f}",
            ]
        )
    return table(header, rows)


def _all_ways(record: Record) -> list[str]:
    header = ["batch", "way", *MODELS, "masked update", "compacted update"]
    header += [f"masked, average over {DELTA_T}", f"compacted, average over {DELTA_T}"]
    rows = []
    for one in record["training"]:
        taken = one["milliseconds"]
        for way in dict.fromkeys(key.split(", ", 1)[1] for key in taken):
            updates = [
                taken[f"{model} pair, {way}"] - taken[f"{model}, {way}"]
                for model in ("masked", "compacted")
            ]
            values = [*(taken[f"{model}, {way}"] for model in MODELS), *updates]
            values += [average_step(taken, model, way) for model in ("masked", "compacted")]
            rows.append([str(one["batch"]), way, *(f"{value:.1f}" for value in values)])
    return table(header, rows)
