"""Measured times, from the lines of their own file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.cifar.records.results import Record
from benchmarks.cifar.report.summary import Group, Variant


@dataclass(frozen=True)
class Machine:
    """Where times were measured, and with how many threads."""

    processor: str
    device: str
    threads: int

    @classmethod
    def of(cls, record: Record) -> Machine:
        about = record["environment"]
        return cls(about["processor"], about["device"], about["threads"])

    def __str__(self) -> str:
        name = self.processor if self.device == "cpu" else f"{self.device}, {self.processor}"
        return f"{name}, {self.threads} {'thread' if self.threads == 1 else 'threads'}"


@dataclass(frozen=True)
class Ratio:
    """A time as a multiple of the dense network's, over the runs of a variant.

    Attributes:
        mean: Mean of the runs' medians.
        low: The smallest of their lower quartiles.
        high: The largest of their upper quartiles.
    """

    mean: float
    low: float
    high: float

    @classmethod
    def over(cls, quartiles: Sequence[dict[str, float]]) -> Ratio:
        """Over the quartiles of each run.

        Example:
            >>> one = {"q1": 0.4, "median": 0.5, "q3": 0.6}
            >>> other = {"q1": 0.6, "median": 0.7, "q3": 0.8}
            >>> str(Ratio.over([one, other]))
            '0.600x (0.400 to 0.800)'
        """
        medians = [one["median"] for one in quartiles]
        return cls(
            sum(medians) / len(medians),
            min(one["q1"] for one in quartiles),
            max(one["q3"] for one in quartiles),
        )

    def __str__(self) -> str:
        return f"{self.mean:.3f}x ({self.low:.3f} to {self.high:.3f})"


class Times:
    """What was measured on one machine of the runs of one protocol; a run's last line counts.

    Args:
        machine: The machine.
        records: Lines of the file of times.
    """

    def __init__(self, machine: Machine, records: Iterable[Record]) -> None:
        self.machine = machine
        self.records = {record["run_key"]: record for record in records}

    @property
    def batches(self) -> list[int]:
        """Batch sizes of inference, ascending."""
        return sorted(
            {one["batch"] for record in self.records.values() for one in record["inference"]}
        )

    def of(self, group: Group, variant: Variant) -> list[Record]:
        """Of each run of a variant that has been timed."""
        keys = [record["key"] for record in group.runs(variant).values()]
        return [self.records[key] for key in keys if key in self.records]

    def inference(self, group: Group, variant: Variant, batch: int) -> Ratio | None:
        """Of an inference; None where that was not measured."""
        found = [found_at(record, batch) for record in self.of(group, variant)]
        return _over(one["ratio"] for one in found if one is not None)

    def training(self, group: Group, variant: Variant) -> Ratio | None:
        """Of a training step, mask updates included; None where that was not measured."""
        return _over(record["training"]["ratio"] for record in self.of(group, variant))


def times_of(group: Group, records: Sequence[Record]) -> list[Times]:
    """The times of a protocol's runs, by machine; the one with the most runs comes first.

    Args:
        group: The results.
        records: Lines of the file of times, oldest first.
    """
    keys = {record["key"] for record in group.records}
    machines: dict[Machine, list[Record]] = {}
    for record in records:
        if record["run_key"] in keys:
            machines.setdefault(Machine.of(record), []).append(record)
    found = [Times(machine, lines) for machine, lines in machines.items()]
    return sorted(found, key=lambda times: -len(times.records))


def found_at(record: Record, batch: int) -> dict[str, Any] | None:
    """What a line says of the inference of a batch size."""
    return next((one for one in record["inference"] if one["batch"] == batch), None)


def _over(quartiles: Iterable[dict[str, float]]) -> Ratio | None:
    found = list(quartiles)
    return Ratio.over(found) if found else None
