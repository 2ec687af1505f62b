"""Inference of a dense model, a compacted one, and one built by hand in the compacted shapes."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.speed.models import IMAGE, WORKLOADS, built_by_hand, masked
from benchmarks.speed.records import (
    WAYS,
    Record,
    add_amounts,
    add_model,
    fastest_table,
    layout_of,
    sections,
    timed,
)
from sparseopt import Compaction

MODELS = ("dense", "compacted", "by hand")


def add_options(parser: argparse.ArgumentParser) -> None:
    """What a user can choose."""
    add_model(parser, WORKLOADS)
    add_amounts(parser, batches=(1, 64, 128), rounds=15)


def measure(options: argparse.Namespace) -> Iterator[tuple[str, Record]]:
    """Time every model at every batch size."""
    workload, density = options.workload, options.density
    models, flops_ratio = build_models(workload, density)
    times = [
        # One sample takes little time, and varies the most.
        measure_models(models, batch, options.rounds * (4 if batch == 1 else 1))
        for batch in options.batches
    ]
    record = {"workload": workload, "density": density, "flops_ratio": flops_ratio}
    yield f"inference-{workload}-{density}", {**record, "inference": times}


def build_models(workload: str, density: float) -> tuple[dict[str, nn.Module], float]:
    """Build the three models; return them by name, and the FLOPs of the compacted one."""
    torch.manual_seed(0)
    dense = WORKLOADS[workload]()
    compaction = Compaction(dense, masked(dense, density), torch.randn(2, *IMAGE))
    report = compaction.report
    if report.remaining:
        raise RuntimeError(f"not everything was removed:\n{report}")
    models = dense, compaction.model, built_by_hand(compaction.model)
    return dict(zip(MODELS, models, strict=True)), report.flops_ratio


@torch.no_grad()
def measure_models(models: Mapping[str, nn.Module], batch: int, rounds: int) -> Record:
    """Return medians of a forward pass, of every model in every way, in milliseconds."""
    image = torch.randn(batch, *IMAGE)
    calls = {
        f"{name}, {way}": _forward(model, image, way)
        for name, model in models.items()
        for way in WAYS
    }
    return timed(calls, batch, rounds)


def _forward(model: nn.Module, inputs: torch.Tensor, way: str) -> Callable[[], Any]:
    dtype = torch.bfloat16 if "bfloat16" in way else torch.float32
    placed = copy.deepcopy(model).to(dtype=dtype, memory_format=layout_of(way)).eval()
    given = inputs.to(dtype=dtype, memory_format=layout_of(way))
    return lambda: placed(given)


def report_lines(records: Sequence[Record], _: Path) -> list[str]:
    """A subsection for each workload at each density."""
    explanation = (
        "Channels are dropped at random, the square root of the density staying in each group, and "
        "taken out by `compact`. *By hand* is the same model with every layer made by its "
        "constructor in that shape: what dense code of this size takes, and so the floor. Narrow "
        "layers do fewer multiplications a second, which is why time does not follow FLOPs."
    )
    return sections("Inference", explanation, records, _fastest_table)


def _fastest_table(record: Record) -> list[str]:
    def ratios(dense: float, compacted: float, by_hand: float) -> dict[str, str]:
        return {
            "compacted / by hand": f"{compacted / by_hand:.2f}",
            "FLOP ratio": f"{record['flops_ratio']:.3f}",
            "wall-time ratio": f"{compacted / dense:.3f}",
            "floor (by hand / dense)": f"{by_hand / dense:.3f}",
        }

    times = {one["batch"]: one["milliseconds"] for one in record["inference"]}
    return fastest_table(times, MODELS, ratios)
