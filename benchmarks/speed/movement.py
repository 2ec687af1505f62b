"""The channels that have ever been live, layer by layer, after each update of a short training."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from benchmarks.cifar.batches import Splits, splits_for
from benchmarks.cifar.config import Protocol, load_preset
from benchmarks.cifar.data import DataError, load_dataset
from benchmarks.cifar.grid import RunSpec
from benchmarks.cifar.train import Run
from benchmarks.common.arguments import density
from benchmarks.common.tables import paragraph, table_of
from benchmarks.speed.records import Record, made_with
from sparseopt import CompactedTraining, SparseOptimizer

#: A method that hardly ever ablates neurons, so that the movement of weights is shown.
NEURONS = "srigl"
CHANNELS = "rigl-struct"
METHODS = (CHANNELS, NEURONS)
#: The changes of the training against a preset of the CIFAR benchmark.
CHANGES = ("model.depth=22", "model.width=2", "training.epochs=1", "sparsity.delta_t=20")
#: Steps at the end whose mean loss is recorded, to show that something was learned.
LAST = 20
#: The settings of a run that have columns of their own in the report.
SHOWN = ("method", "model", "data", "density")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this figure."""
    add = parser.add_argument
    data = "folder with CIFAR-10, as benchmarks/cifar takes it; without, scikit-learn's digits"
    add("--data-dir", type=_folder, help=data)
    add("--methods", nargs="+", choices=METHODS, default=METHODS)
    live = "share of live weights (default: %(default)s)"
    add("--density", type=density, default=0.1, help=live)


def _folder(text: str) -> Path:
    """A folder that exists."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a folder; give one with CIFAR-10")
    return Path(text)


def measure(options: argparse.Namespace) -> Iterator[tuple[str, Record]]:
    """Train by each method and watch the channels."""
    protocol = load_preset("smoke" if options.data_dir is None else "cpu", CHANGES)
    try:
        dataset = load_dataset(protocol.dataset, options.data_dir, options.out / "cache")
    except DataError as error:
        raise argparse.ArgumentError(None, str(error)) from None
    splits = splits_for(protocol, dataset, torch.device("cpu"))
    for method in options.methods:
        name = f"movement-{protocol.dataset}-{method}-{options.density}"
        yield name, watch(protocol, RunSpec(method, "uniform", options.density, 0), splits)


def watch(protocol: Protocol, spec: RunSpec, splits: Splits) -> Record:
    """Train for an epoch, and record after each update which channels have been live."""
    run = Run(protocol, spec, splits)
    optimizer = run.optimizer
    assert isinstance(optimizer, SparseOptimizer)
    ever: dict[str, Tensor] = {}
    updates = [_note(optimizer, ever)]
    losses = []
    compacted = spec.method == CHANNELS
    with CompactedTraining(run.model, optimizer) if compacted else contextlib.nullcontext():
        for batch in splits.train.shuffled(protocol.training.batch_size, run.data_generator):
            is_update = optimizer.is_update_step
            losses.append(run.train_step(*batch).item())
            if is_update:
                updates.append(_note(optimizer, ever))
    return {
        "method": spec.method,
        "model": protocol.model.title,
        "data": protocol.dataset,
        "density": spec.density,
        "protocol": protocol.describe(),
        "channels": {name: len(flags) for name, flags in ever.items()},
        "updates": updates,
        "first_loss": losses[0],
        "last_loss": fmean(losses[-LAST:]),
    }


def _note(optimizer: SparseOptimizer, ever: dict[str, Tensor]) -> Record:
    """Return the live channels by layer, and add them to the channels that were ``ever`` live."""
    # The outputs of the model are not channels.
    layers = [layer for layer in optimizer.layers if layer.weight.dim() > 2 and not layer.is_dense]
    live = {layer.name: layer.mask.flatten(1).any(1) for layer in layers}
    ever.update({name: flags | ever.get(name, flags) for name, flags in live.items()})
    return {
        "step": optimizer.steps,
        "live": {name: int(flags.sum()) for name, flags in live.items()},
        "ever": {name: int(flags.sum()) for name, flags in ever.items()},
        "weights": {layer.name: layer.ever_live / layer.numel for layer in layers},
    }


def report_lines(records: Sequence[Record], _: Path) -> list[str]:
    """A row for each run."""
    explanation = (
        "Channels of each layer that are live, and that were ever live, after each update of a "
        "short training. A channel of `srigl` is a neuron: a filter with live weights. Under "
        "`srigl` weights move, so a layer counts if more of its weights became live. Updates end "
        "at three quarters of the training."
    )
    lines = ["## Masks that move", "", *paragraph(explanation), *made_with(records, *SHOWN)]
    protocols = dict.fromkeys(f"Training: {record['protocol']}, uniform." for record in records)
    return [*lines, *paragraph(" ".join(protocols)), *table_of(rows(records))]


def rows(records: Sequence[Record]) -> list[dict[str, str]]:
    """The cells of each row by their column."""
    return [_row(record) for record in records]


def _row(record: Record) -> dict[str, str]:
    channels = sum(record["channels"].values())
    first, last = record["updates"][0], record["updates"][-1]
    moving = "weights" if record["method"] == NEURONS else "ever"
    grew = [name for name in record["channels"] if last[moving][name] > first[moving][name]]
    ever = (f"{sum(one['ever'].values()) / channels:.1%}" for one in (first, last))
    return {
        **{name: str(record[name]) for name in SHOWN},
        "channels ever live": " -> ".join(ever),
        "layers in which more became live": f"{len(grew)} of {len(record['channels'])}",
        "live in the end": f"{sum(last['live'].values()) / channels:.1%}",
        "loss, first and last": f"{record['first_loss']:.2f}, {record['last_loss']:.2f}",
    }
