"""Training steps of a dense model, masked, without its dropped channels, and built by hand."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.common.formats import FORMATS, layout_of
from benchmarks.common.tables import paragraph, table_of
from benchmarks.speed.kernels.machine import about_machine, file_suffix
from benchmarks.speed.models import IMAGE, WORKLOADS, built_by_hand
from benchmarks.speed.records import Record, add_amounts, made_with, timed
from benchmarks.speed.rows import fastest_row, model_cells
from sparseopt import CompactedTraining, RigLStruct, SparseOptimizer, compact, find_channel_groups

#: Mask updates are far apart, or every second step: an ordinary one, and the update.
NEVER = 10**9
EVERY_SECOND = 2
CLASSES = 10
#: Steps from one mask update to the next, of the average that is reported.
DELTA_T = 100
SPARSE = ("masked", "compacted")
MODELS = ("dense", *SPARSE, "by hand")
RATIOS = (
    ("compacted", "masked"),
    ("masked", "dense"),
    ("compacted", "dense"),
    ("by hand", "dense"),
)

Call = Callable[[], None]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this figure."""
    add_amounts(parser, batches=(128,), rounds=5, models=WORKLOADS)


def measure(options: argparse.Namespace) -> Iterator[tuple[str, Record]]:
    """Time training steps at every batch size."""
    workload, density = options.workload, options.density
    times = [
        measure_training(workload, density, batch, options.rounds) for batch in options.batches
    ]
    about = about_machine(options.threads)
    record = {"workload": workload, "density": density, "machine": about, "training": times}
    yield f"training-{workload}-{density}{file_suffix(about)}", record


def measure_training(workload: str, density: float, batch: int, rounds: int) -> Record:
    """Return medians of whole training steps, in milliseconds, of every model in every format.

    *A pair* is an ordinary step and an update step. In between, a compacted model becomes full and
    small again.
    """
    torch.manual_seed(0)
    trainers = _Trainers(workload, density, batch)
    with contextlib.ExitStack() as stack:
        calls = {
            f"{name}, {form}": call
            for form in FORMATS
            for name, call in trainers.of(form, stack).items()
        }
        return timed(calls, batch, rounds)


class _Trainers:
    """Models with their optimizers, and calls that train each by a step of ``batch`` images."""

    def __init__(self, workload: str, density: float, batch: int) -> None:
        self._workload = workload
        self._density = density
        self._images = torch.randn(batch, *IMAGE)
        self._labels = torch.randint(0, CLASSES, (batch,))
        model = self._dense(FORMATS[0])
        self._groups = find_channel_groups(model, self._images[:2])
        self._smaller = compact(
            model, self._rigl_struct(model, NEVER), example_inputs=self._images[:2]
        ).model

    def of(self, form: str, stack: contextlib.ExitStack) -> dict[str, Call]:
        """Return a call for each model, stored and run in a number format, by name."""
        dense = self._dense(form)
        by_hand = built_by_hand(self._smaller).to(memory_format=layout_of(form))
        return {
            "dense": self._step(form, dense, _sgd(dense)),
            "by hand": self._step(form, by_hand, _sgd(by_hand)),
            "masked": self._sparse(form, NEVER),
            "masked pair": _twice(self._sparse(form, EVERY_SECOND)),
            "compacted": self._sparse(form, NEVER, stack),
            "compacted pair": _twice(self._sparse(form, EVERY_SECOND, stack)),
        }

    def _sparse(self, form: str, delta_t: int, stack: contextlib.ExitStack | None = None) -> Call:
        """Train a masked model; with a stack, by a CompactedTraining that the stack ends."""
        model = self._dense(form)
        optimizer = self._rigl_struct(model, delta_t)
        step = self._step(form, model, optimizer)
        if stack is not None:
            images = self._images[:2].to(memory_format=layout_of(form))
            stack.enter_context(CompactedTraining(model, optimizer, example_inputs=images))
        return step

    def _dense(self, form: str) -> nn.Module:
        return WORKLOADS[self._workload]().to(memory_format=layout_of(form))

    def _rigl_struct(self, model: nn.Module, delta_t: int) -> SparseOptimizer:
        return SparseOptimizer(
            _sgd(model),
            model,
            method=RigLStruct(groups=self._groups),
            density=self._density,
            init="uniform",
            total_steps=10 * NEVER,
            delta_t=delta_t,
        )

    def _step(self, form: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> Call:
        images = self._images.to(memory_format=layout_of(form))

        def step() -> None:
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in form):
                outputs = model(images)
            F.cross_entropy(outputs.float(), self._labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        return step


def _sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(
        model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4
    )


def _twice(call: Call) -> Call:
    def twice() -> None:
        call()
        call()

    return twice


def average_steps(times: Mapping[str, float]) -> dict[str, float]:
    """Return the mean milliseconds of a step over ``DELTA_T`` steps, by ``"model, format"``."""
    average = {}
    for key, step in times.items():
        model, _, form = key.partition(", ")
        if model in MODELS:
            pair = times.get(f"{model} pair, {form}", 2 * step)
            average[key] = ((DELTA_T - 2) * step + pair) / DELTA_T
    return average


def report_lines(records: Sequence[Record], _: Path) -> list[str]:
    """A row for each workload, density and batch size; then a row for each number format."""
    explanation = (
        "Full training steps: forward pass, backward pass and SGD with momentum. *Masked* is "
        "`rigl-struct`; *compacted* is the same in `CompactedTraining`, which computes dropped "
        "channels only in update steps; *by hand* is as above. The times are averages over "
        f"{DELTA_T - 1} ordinary steps and one update step, in which the compacted model becomes "
        "full and then small again. Dense models and models made by hand have no update steps."
    )
    every = [
        _row(record, one["batch"], form, one["milliseconds"])
        for record in records
        for one in record["training"]
        for form in FORMATS
    ]
    lines = ["## Training", "", *paragraph(explanation), *made_with(records, "workload", "density")]
    return [
        *lines,
        *table_of(rows(records)),
        *paragraph("Each number format, milliseconds:"),
        *table_of(every),
    ]


def rows(records: Sequence[Record]) -> list[dict[str, str]]:
    """The cells of each row of steps on average by their column."""
    return [
        fastest_row(record, one["batch"], average_steps(one["milliseconds"]), RATIOS)
        for record in records
        for one in record["training"]
    ]


def _row(record: Record, batch: int, form: str, times: Mapping[str, float]) -> dict[str, str]:
    values = {model: times[f"{model}, {form}"] for model in MODELS}
    average = average_steps(times)
    for model in SPARSE:
        values[f"{model} update"] = times[f"{model} pair, {form}"] - values[model]
        values[f"{model}, average over {DELTA_T}"] = average[f"{model}, {form}"]
    shown = {title: f"{value:.1f}" for title, value in values.items()}
    return {**model_cells(record, batch), "number format": form, **shown}
