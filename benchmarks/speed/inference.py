"""Inference of a dense model, a compacted one, and one built by hand in the compacted shapes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.cifar.structure import masked_by
from benchmarks.common.formats import FORMATS, placed
from benchmarks.common.tables import paragraph, table_of
from benchmarks.speed.kernels.machine import about_machine, file_suffix
from benchmarks.speed.models import IMAGE, WORKLOADS, built_by_hand, channel_masks
from benchmarks.speed.records import Record, add_amounts, made_with, timed
from benchmarks.speed.rows import fastest_row
from sparseopt import compact

MODELS = ("dense", "compacted", "by hand")
RATIOS = (("compacted", "by hand"), ("compacted", "dense"), ("by hand", "dense"))


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this figure."""
    add_amounts(parser, batches=(1, 64, 128), rounds=15, models=WORKLOADS)


def measure(options: argparse.Namespace) -> Iterator[tuple[str, Record]]:
    """Time every model at every batch size."""
    workload, density = options.workload, options.density
    models, flops_ratio = build_models(workload, density)
    times = [
        # One sample takes little time, and its time varies the most.
        measure_models(models, batch, options.rounds * (4 if batch == 1 else 1))
        for batch in options.batches
    ]
    about = about_machine(options.threads)
    record = {"workload": workload, "density": density, "machine": about}
    record |= {"flops_ratio": flops_ratio, "inference": times}
    yield f"inference-{workload}-{density}{file_suffix(about)}", record


def build_models(workload: str, density: float) -> tuple[dict[str, nn.Module], float]:
    """Build the three models; return them by name, and the FLOPs of the compacted one."""
    torch.manual_seed(0)
    dense = WORKLOADS[workload]()
    optimizer = masked_by(dense, channel_masks(dense, density))
    compacted = compact(dense, optimizer, example_inputs=torch.randn(2, *IMAGE))
    report = compacted.report
    if report.remaining:
        raise RuntimeError(f"not everything was removed:\n{report}")
    models = dense, compacted.model, built_by_hand(compacted.model)
    return dict(zip(MODELS, models, strict=True)), report.flops_ratio


@torch.no_grad()
def measure_models(models: Mapping[str, nn.Module], batch: int, rounds: int) -> Record:
    """Return medians of a forward pass, of every model in every number format, in milliseconds."""
    image = torch.randn(batch, *IMAGE)
    calls = {
        f"{name}, {form}": _forward(model, image, form)
        for name, model in models.items()
        for form in FORMATS
    }
    return timed(calls, batch, rounds)


def _forward(model: nn.Module, inputs: torch.Tensor, form: str) -> Callable[[], Any]:
    copied, images = placed(model.eval(), inputs, form)
    return lambda: copied(images)


def report_lines(records: Sequence[Record], _: Path) -> list[str]:
    """A row for each workload, density and batch size."""
    explanation = (
        "Channels are dropped at random, and the share that stays in each group is the square root "
        "of the density. `compact` removes the dropped channels. *By hand* is the same model with "
        "every layer constructed in the smaller shape: the time of dense code of this size, which "
        "is the least possible. Narrow layers do fewer multiplications a second, so time is not "
        "proportional to FLOPs."
    )
    lines = ["## Inference", "", *paragraph(explanation)]
    return [*lines, *made_with(records, "workload", "density"), *table_of(rows(records))]


def rows(records: Sequence[Record]) -> list[dict[str, str]]:
    """The cells of each row by their column."""
    return [
        fastest_row(record, one["batch"], one["milliseconds"], RATIOS)
        | {"FLOPs / dense": f"{record['flops_ratio']:.3f}"}
        for record in records
        for one in record["inference"]
    ]
