"""Linear layers of constant fan-in, by every dense and sparse implementation on this machine."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common.formats import precisions_of
from benchmarks.common.tables import paragraph, table_of
from benchmarks.speed.kernels.machine import about_machine, file_suffix
from benchmarks.speed.records import Record, add_amounts, made_with
from benchmarks.speed.rows import place_cells
from sparseopt import CondensedLinear, CSRLinear
from sparseopt.speedup.timing import time_in_turn

#: Inputs and outputs of the layers, as in a transformer's feed-forward block.
SHAPES = ((768, 3072), (3072, 768))
DENSITIES = (0.2, 0.1, 0.05, 0.01)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this figure."""
    add_amounts(parser, batches=(1, 64), rounds=15)


def measure(options: argparse.Namespace) -> Iterator[tuple[str, Record]]:
    """Time every layer at every density."""
    layers = [
        measure_layer(shape, density, rows, options.rounds)
        for rows in options.batches
        for shape in SHAPES
        for density in DENSITIES
    ]
    about = about_machine(options.threads)
    yield f"linear{file_suffix(about)}", {"machine": about, "linear": layers}


def measure_layer(shape: tuple[int, int], density: float, rows: int, rounds: int) -> Record:
    """Return the times of a layer for inputs of ``rows`` vectors."""
    torch.manual_seed(0)
    inputs, outputs = shape
    layer = nn.Linear(inputs, outputs)
    fan_in = round(density * inputs)
    mask = torch.zeros(outputs, inputs, dtype=torch.bool)
    mask.scatter_(1, torch.rand(outputs, inputs).topk(fan_in).indices, True)
    layer.weight.data[~mask] = 0
    x = torch.randn(rows, inputs)
    dense = dense_implementations(layer, x)
    sparse = {
        "CSR": CSRLinear(layer.weight, mask, layer.bias),
        "condensed": CondensedLinear(layer.weight, mask, layer.bias),
    }
    calls = {**dense, **{name: _call(one, x) for name, one in sparse.items()}}
    seconds = measure_calls(calls, rounds)
    fastest = min(sparse, key=seconds.__getitem__)
    is_faster = seconds[fastest] < min(seconds[name] for name in dense)
    return {
        "shape": list(shape),
        "density": density,
        "rows": rows,
        "dense": {name: seconds[name] for name in dense},
        "sparse": {name: seconds[name] for name in sparse},
        "chosen": fastest if is_faster else "dense",
    }


@torch.no_grad()
def measure_calls(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each call, all of them in turn in every round."""
    times = time_in_turn(calls, rounds=rounds, device="cpu", warmup=2, shortest=1e-3)
    return {name: time.median for name, time in times.items()}


def dense_implementations(layer: nn.Linear, x: Tensor) -> dict[str, Callable[[], Any]]:
    """Return calls that compute a layer densely: torch and oneDNN, in each number format."""
    calls: dict[str, Callable[[], Any]] = {}
    for name in precisions_of(x.device):
        dtype = getattr(torch, name)
        given = (x.to(dtype), layer.weight.detach().to(dtype), layer.bias.detach().to(dtype))
        packed = torch.ops.mkldnn._reorder_linear_weight(given[1], len(x))
        calls[f"F.linear {name}"] = lambda given=given: F.linear(*given)
        calls[f"oneDNN packed {name}"] = lambda given=given, packed=packed: (
            torch.ops.mkldnn._linear_pointwise(given[0], packed, given[2], "none", [], "")
        )
    return calls


def _call(module: nn.Module, x: Tensor) -> Callable[[], Any]:
    return lambda: module(x)


def report_lines(records: Sequence[Record], _: Path) -> list[str]:
    """A row for each layer at each density."""
    lines = ["## Linear layers of constant fan-in", "", *made_with(records)]
    lines += paragraph(
        "Microseconds of the fastest dense and of the fastest sparse implementation, and the layer "
        "that `condense` makes."
    )
    return [*lines, *table_of(rows(records))]


def rows(records: Sequence[Record]) -> list[dict[str, str]]:
    """The cells of each row by their column."""
    return [_row(one, place_cells(record)) for record in records for one in record["linear"]]


def _row(one: Record, place: dict[str, str]) -> dict[str, str]:
    kinds = (one[kind].items() for kind in ("dense", "sparse"))
    (dense, dense_name), (sparse, sparse_name) = (
        min((seconds, name) for name, seconds in times) for times in kinds
    )
    return {
        "in x out": " x ".join(map(str, one["shape"])),
        "density": str(one["density"]),
        "rows": str(one["rows"]),
        **place,
        "fastest dense": f"{1e6 * dense:.0f}, {dense_name}",
        "fastest sparse": f"{1e6 * sparse:.0f}, {sparse_name}",
        "speed-up": f"{dense / sparse:.2f}",
        "chosen": one["chosen"],
    }
