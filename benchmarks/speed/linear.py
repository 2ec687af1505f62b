"""Linear layers of constant fan-in, in every dense and sparse way that this machine has."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks.common.tables import paragraph, table_of
from benchmarks.speed.records import Record, add_amounts, made_with
from sparseopt import Condensation, SparseOptimizer

#: Inputs and outputs of the layers, as in a transformer's feed-forward block.
SHAPES = ((768, 3072), (3072, 768))
DENSITIES = (0.2, 0.1, 0.05, 0.01)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What a user can choose."""
    add_amounts(parser, batches=(1, 64), rounds=15)


def measure(options: argparse.Namespace) -> Iterator[tuple[str, Record]]:
    """Time every layer at every density."""
    layers = [
        measure_layer(shape, density, rows, options.rounds)
        for rows in options.batches
        for shape in SHAPES
        for density in DENSITIES
    ]
    yield "linear", {"linear": layers}


def measure_layer(shape: tuple[int, int], density: float, rows: int, rounds: int) -> Record:
    """Return the times of a layer that is given ``rows`` vectors at once."""
    torch.manual_seed(0)
    inputs, outputs = shape
    model = nn.Sequential(nn.Linear(inputs, outputs))
    fan_in = round(density * inputs)
    mask = torch.zeros(outputs, inputs, dtype=torch.bool)
    mask.scatter_(1, torch.rand(outputs, inputs).topk(fan_in).indices, True)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = SparseOptimizer(inner, model, method="static", mask={"0": mask})
    (times,) = Condensation(model, optimizer, torch.randn(rows, inputs), rounds=rounds).report
    return {
        "shape": list(shape),
        "density": density,
        "rows": rows,
        "dense": dict(times.dense),
        "sparse": dict(times.sparse),
        "chosen": times.chosen,
    }


def report_lines(records: Sequence[Record], _: Path) -> list[str]:
    """A row for each layer at each density."""
    lines = ["## Linear layers of constant fan-in", "", *made_with(records)]
    lines += paragraph(
        "Microseconds of the fastest dense and of the fastest sparse way, and what `condense` "
        "makes of the layer."
    )
    return [*lines, *table_of(rows(records))]


def rows(records: Sequence[Record]) -> list[dict[str, str]]:
    """The cells of each row by their column."""
    return [_row(one) for record in records for one in record["linear"]]


def _row(one: Record) -> dict[str, str]:
    kinds = (one[kind].items() for kind in ("dense", "sparse"))
    (dense, dense_way), (sparse, sparse_way) = (
        min((seconds, way) for way, seconds in ways) for ways in kinds
    )
    return {
        "in x out": " x ".join(map(str, one["shape"])),
        "density": str(one["density"]),
        "rows": str(one["rows"]),
        "fastest dense": f"{1e6 * dense:.0f}, {dense_way}",
        "fastest sparse": f"{1e6 * sparse:.0f}, {sparse_way}",
        "speed-up": f"{dense / sparse:.2f}",
        "chosen": one["chosen"],
    }
