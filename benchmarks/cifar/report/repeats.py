"""Runs that were repeated with the same settings and the same seed, beside the first of each."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.cifar.records import Record
from benchmarks.cifar.report.results import Group, Variant
from benchmarks.cifar.report.texts import note
from benchmarks.common.tables import table_of


def repeats_table(group: Group, repeats: Sequence[Record]) -> list[str]:
    """A row for each repeated run of the group, or no lines without repeated runs.

    Args:
        group: The protocol with the first runs.
        repeats: Records of repeated runs. Runs that the group does not have are left out.
    """
    first = {record["key"]: record for record in group.records}
    rows = [_row(first[again["key"]], again) for again in repeats if again["key"] in first]
    return [*table_of(rows), *note("repeats")] if rows else []


def _row(first: Record, again: Record) -> dict[str, str]:
    before, after = (100 * record["accuracy"]["test"] for record in (first, again))
    return {
        **Variant.of(first["run"]).cells,
        "seed": str(first["run"]["seed"]),
        "test %": f"{before:.2f}",
        "on": first["environment"]["processor"],
        "repeated, test %": f"{after:.2f}",
        "repeated on": again["environment"]["processor"],
        "difference, points": f"{after - before:+.2f}",
    }
