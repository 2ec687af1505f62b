"""The common cells of tables: the model, where it was measured, and what was fastest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.speed.kernels.report import processor_of
from benchmarks.speed.records import Record


def fastest_row(
    record: Record, batch: int, times: Mapping[str, float], ratios: Sequence[tuple[str, str]]
) -> dict[str, str]:
    """The fastest implementation of each model, and ratios of their times.

    Args:
        record: The record of the models.
        batch: The batch size.
        times: Milliseconds by ``"model, implementation"``.
        ratios: Pairs of models whose ratio is shown.
    """
    found: dict[str, tuple[float, str]] = {}
    for name, time in times.items():
        model, _, implementation = name.partition(", ")
        found[model] = min((time, implementation), found.get(model, (time, implementation)))
    return {
        **model_cells(record, batch),
        **{f"{name}, fastest": f"{time:.4g} ms, {how}" for name, (time, how) in found.items()},
        **{f"{one} / {other}": f"{found[one][0] / found[other][0]:.3f}" for one, other in ratios},
    }


def model_cells(record: Record, batch: int) -> dict[str, str]:
    """The cells of a table that identify the model of a row."""
    about = {"model": record["workload"], "density": str(record["density"]), "batch": str(batch)}
    return {**about, **place_cells(record)}


def place_cells(record: Record) -> dict[str, str]:
    """The cells of a table that say where a row was measured."""
    environment = record["environment"]
    # Older results have only the name of the processor.
    processor = processor_of(record["machine"]) if "machine" in record else environment["processor"]
    return {"processor": processor, "threads": str(environment["threads"])}
