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

from benchmarks.common.tables import table
from benchmarks.speed.models import IMAGE, WORKLOADS, built_by_hand, masked
from benchmarks.speed.records import (
    WAYS,
    Record,
    add_amounts,
    add_model,
    fastest,
    in_words,
    layout_of,
    sections,
    timed,
)
from sparseopt import Compaction

MODELS = ("dense", "compacted", "by hand")


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


def measure(options: argparse.Namespace) -> Iterator[tuple[str, Record]]:
    """Time every model at every batch size."""
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
        },
    )


@torch.no_grad()
def measure_models(case: Case, batch: int, rounds: int) -> Record:
    """Return medians of a forward pass, of every model in every way, in milliseconds."""
    image = torch.randn(batch, *IMAGE)
    models = dict(zip(MODELS, (case.dense, case.compacted, case.by_hand), strict=True))
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
