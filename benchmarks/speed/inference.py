"""Inference of a dense model, a compacted one, and one built by hand in the compacted shapes."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.common.tables import paragraph, table
from benchmarks.speed.models import IMAGE, WORKLOADS, built_by_hand, masked
from benchmarks.speed.records import (
    WAYS,
    Record,
    add_amounts,
    add_model,
    fastest,
    in_words,
    layout_of,
    made_with,
)
from sparseopt import Compaction
from sparseopt.speedup.timing import time_in_turn

#: Layers whose own times are measured, at most: those with the most multiplications.
LAYERS = 12
MODELS = ("dense", "compacted", "by hand")
MILLI = 1e3


@dataclass(frozen=True)
class Case:
    """One workload at one density, made once and timed at several batch sizes."""

    dense: nn.Module
    compacted: nn.Module
    by_hand: nn.Module
    flops_ratio: float

    @staticmethod
    def make(workload: str, density: float) -> Case:
        """Build the three models."""
        torch.manual_seed(0)
        dense = WORKLOADS[workload]()
        compaction = Compaction(dense, masked(dense, density), torch.randn(2, *IMAGE))
        report = compaction.report
        if report.remaining:
            raise RuntimeError(f"not everything was removed:\n{report}")
        return Case(dense, compaction.model, built_by_hand(compaction.model), report.flops_ratio)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What a user can choose."""
    add_model(parser, WORKLOADS)
    add_amounts(parser, batches=(1, 64, 128), rounds=15)
    parser.add_argument("--layer-batch", type=int, default=64, help="batch of layers (default: 64)")


def measure(options: argparse.Namespace) -> Iterator[tuple[str, Record]]:
    """Time whole models, and the largest layers alone."""
    case = Case.make(options.workload, options.density)
    yield (
        f"inference-{options.workload}-{options.density}",
        {
            "workload": options.workload,
            "density": options.density,
            "flops_ratio": case.flops_ratio,
            "inference": [
                # One sample takes little time, and varies the most.
                measure_models(case, batch, options.rounds * (4 if batch == 1 else 1))
                for batch in options.batches
            ],
            "layer_batch": options.layer_batch,
            "layers": measure_layers(case, options.layer_batch, options.rounds),
        },
    )


def measure_models(case: Case, batch: int, rounds: int) -> Record:
    """Return medians of a forward pass, of every model in every way, in milliseconds."""
    image = torch.randn(batch, *IMAGE)
    models = dict(zip(MODELS, (case.dense, case.compacted, case.by_hand), strict=True))
    calls = {
        f"{name}, {way}": _forward(model, image, way)
        for name, model in models.items()
        for way in WAYS
    }
    return {"batch": batch, "rounds": rounds, "milliseconds": _milliseconds(calls, rounds)}


def measure_layers(case: Case, batch: int, rounds: int) -> list[Record]:
    """Return for the largest convolutions their FLOPs and their times."""
    inputs = {name: _layer_inputs(getattr(case, name), batch) for name in ("dense", "compacted")}
    convolutions = {
        path: module for path, module in case.dense.named_modules() if isinstance(module, nn.Conv2d)
    }
    flops = {path: _flops(module, inputs["dense"][path]) for path, module in convolutions.items()}
    largest = sorted(flops, key=lambda path: -flops[path])[:LAYERS]
    return [_measure_layer(case, path, inputs, rounds) for path in convolutions if path in largest]


def _measure_layer(
    case: Case, path: str, inputs: dict[str, dict[str, torch.Tensor]], rounds: int
) -> Record:
    layers: dict[str, Any] = {name: getattr(case, name).get_submodule(path) for name in inputs}
    calls = {name: _forward(layer, inputs[name][path], WAYS[0]) for name, layer in layers.items()}
    return {
        "name": path,
        **{name: list(layer.weight.shape) for name, layer in layers.items()},
        "flops": _flops(layers["dense"], inputs["dense"][path]),
        "compacted_flops": _flops(layers["compacted"], inputs["compacted"][path]),
        "milliseconds": _milliseconds(calls, rounds),
    }


@torch.no_grad()
def _milliseconds(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    times = time_in_turn(calls, rounds=rounds, device="cpu")
    return {name: MILLI * time.median for name, time in times.items()}


def _forward(model: nn.Module, inputs: torch.Tensor, way: str) -> Callable[[], Any]:
    dtype = torch.bfloat16 if "bfloat16" in way else torch.float32
    placed = copy.deepcopy(model).to(dtype=dtype, memory_format=layout_of(way)).eval()
    given = inputs.to(dtype=dtype, memory_format=layout_of(way))
    return lambda: placed(given)


@torch.no_grad()
def _layer_inputs(model: nn.Module, batch: int) -> dict[str, torch.Tensor]:
    """Return random inputs of every convolution, as large as those in the model."""
    inputs: dict[str, torch.Tensor] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, path=path: inputs.update({path: torch.randn_like(args[0])})
        )
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    model.eval()(torch.randn(batch, *IMAGE))
    for handle in handles:
        handle.remove()
    return inputs


@torch.no_grad()
def _flops(convolution: Any, inputs: torch.Tensor) -> int:
    places = convolution(inputs[:1]).shape[2:].numel()
    return int(2 * convolution.weight.numel() * places)


def report_lines(records: Sequence[Record], _: Path) -> list[str]:
    """A subsection for each workload at each density."""
    lines = ["## Inference", ""]
    lines += paragraph(
        "Channels are dropped at random, the square root of the density staying in each group, and "
        "taken out by `compact`. *By hand* is the same model with every layer made by its "
        "constructor in that shape: what dense code of this size takes, and so the floor."
    )
    for record in records:
        lines += [f"### Inference: {record['workload']}, density {record['density']}", ""]
        lines += paragraph(made_with(record))
        lines += _fastest_table(record)
        lines += paragraph(
            "The convolutions with the most multiplications, alone, batch "
            f"{record['layer_batch']}, float32. Narrow layers do fewer multiplications a second, "
            "which is why time does not follow FLOPs:"
        )
        lines += _layer_table(record)
    return lines


def _fastest_table(record: Record) -> list[str]:
    header = ["batch", *(f"{name}, fastest" for name in MODELS)]
    header += ["compacted / by hand", "FLOP ratio", "wall-time ratio", "floor (by hand / dense)"]
    rows = []
    for one in record["inference"]:
        found = [fastest(one["milliseconds"], name) for name in MODELS]
        (dense, _), (compacted, _), (by_hand, _) = found
        ratios = f"{compacted / by_hand:.2f}", f"{record['flops_ratio']:.3f}"
        shares = f"{compacted / dense:.3f}", f"{by_hand / dense:.3f}"
        rows.append([str(one["batch"]), *map(in_words, found), *ratios, *shares])
    return table(header, rows)


def _layer_table(record: Record) -> list[str]:
    header = ["layer", "dense", "compacted", "FLOP ratio", "time ratio"]
    rows = []
    for layer in record["layers"]:
        times = layer["milliseconds"]
        flops = {"dense": layer["flops"], "compacted": layer["compacted_flops"]}
        rows.append(
            [
                f"`{layer['name']}`",
                *("x".join(map(str, layer[name])) for name in flops),
                f"{flops['compacted'] / flops['dense']:.3f}",
                f"{times['compacted'] / times['dense']:.3f}",
                *(f"{flops[one] * record['layer_batch'] / times[one] / 1e6:.0f}" for one in flops),
            ]
        )
    return table([*header, "GFLOP/s dense", "compacted"], rows)
