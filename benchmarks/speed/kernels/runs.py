"""The records of workloads: their order, their names, and the selection of ordinary ones."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.speed.kernels.layers import WORKLOADS
from benchmarks.speed.kernels.machine import ORDINARY, kind_of
from benchmarks.speed.kernels.ratios import is_complete
from benchmarks.speed.records import Record


def of_workloads(records: Iterable[Record]) -> list[Record]:
    """The records that have layers, in the order of the networks; one thread first."""
    order = list(WORKLOADS)
    found = [record for record in records if record.get("layers")]
    return sorted(found, key=lambda one: (_special(one), order.index(one["workload"])))


def _special(record: Record) -> tuple[bool, str]:
    return record["threads"] > 1, kind_of(record)


def of_kind(records: Iterable[Record], kind: str) -> list[Record]:
    """Complete workloads on one thread of a kind of processor."""
    found = of_workloads(records)
    return [one for one in found if is_complete(one) and _special(one) == (False, kind)]


def ordinary(records: Iterable[Record]) -> list[Record]:
    """Complete workloads on one thread of an ordinary processor."""
    return of_kind(records, ORDINARY)


def not_measured(records: Iterable[Record]) -> list[str]:
    """The workloads without a complete record on one thread, by name and batch."""
    found = {record["workload"] for record in ordinary(records)}
    return [f"{one.network} {one.batch}" for one in WORKLOADS.values() if one.name not in found]


def title(record: Record) -> str:
    """The network, its batch, and the threads if there are several."""
    threads = f", {record['threads']} threads" if record["threads"] > 1 else ""
    return f"{record['network']}, {record['batch']}{threads}"
