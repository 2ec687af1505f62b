"""Which channels have ever been live, layer by layer, after each update of a short training."""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR

from benchmarks.cifar.batches import Split, make_splits
from benchmarks.cifar.config import AugmentationConfig
from benchmarks.cifar.data import DataError, load_dataset
from benchmarks.common.tables import paragraph, table
from benchmarks.speed.models import IMAGE, WORKLOADS
from benchmarks.speed.records import Record, add_model, made_with
from sparseopt import CompactedTraining, RigLStruct, SparseOptimizer, find_channel_groups

#: The method whose neurons hardly ever go out, so that weights say what moves.
NEURONS = "srigl"
CHANNELS = "rigl-struct"
METHODS = (CHANNELS, NEURONS)
AUGMENTATIONS = {
    "cifar10": AugmentationConfig(crop_padding=4, flip=True),
    "digits": AugmentationConfig(crop_padding=0, flip=False),
}
#: The share of the images that is left out of training.
VALIDATION = 0.1
#: Steps at the end whose mean loss is recorded, to show that something was learned.
LAST = 20
#: How it was trained, for the report.
SETTINGS = ("steps", "delta_t", "alpha", "batch_size", "lr", "momentum", "weight_decay", "seed")
#: What the report says of each run, beside what was trained.
COLUMNS = (
    "channels ever live",
    "layers in which more became live",
    "live in the end",
    "loss, first and last",
)


@dataclass(frozen=True)
class Movement:
    """What is trained, and how; nothing but ``method`` differs between runs to be compared."""

    method: str
    data: str
    workload: str = "wrn-22-2"
    density: float = 0.1
    steps: int = 300
    delta_t: int = 20
    alpha: float = 0.3
    batch_size: int = 32
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """What a user can choose."""
    add_model(parser, WORKLOADS)
    data = "folder with CIFAR-10, as benchmarks/cifar takes it; without, scikit-learn's digits"
    parser.add_argument("--data-dir", type=Path, help=data)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--steps", type=int, default=Movement.steps, help="default: %(default)s")


def measure(options: argparse.Namespace) -> Iterator[tuple[str, Record]]:
    """Train by each method and watch the channels."""
    data = "digits" if options.data_dir is None else "cifar10"
    try:
        images = training_images(data, options.data_dir, options.out / "cache")
    except DataError as error:
        raise SystemExit(f"error: {error}") from None
    for method in options.methods:
        about = Movement(method, data, options.workload, options.density, options.steps)
        name = f"movement-{data}-{options.workload}-{method}-{options.density}"
        yield name, watch(about, images)


def training_images(data: str, data_dir: Path | None, cache: Path) -> Split:
    """Return the training images of a data set, in augmented batches."""
    dataset, cpu = load_dataset(data, data_dir, cache), torch.device("cpu")
    splits = make_splits(dataset, VALIDATION, AUGMENTATIONS[data], cpu, channels_last=False)
    return splits[0]


def watch(movement: Movement, images: Split) -> Record:
    """Train, and note after each update which channels have been live."""
    torch.manual_seed(movement.seed)
    model = WORKLOADS[movement.workload]()
    optimizer = _optimizer(movement, model)
    scheduler = OneCycleLR(optimizer, movement.lr, total_steps=movement.steps)
    ever: dict[str, Tensor] = {}
    updates = [_note(optimizer, ever)]
    compacted = movement.method == CHANNELS
    losses = []
    with CompactedTraining(model, optimizer) if compacted else contextlib.nullcontext():
        for inputs, labels in itertools.islice(_batches(movement, images), movement.steps):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.item())
            is_update = optimizer.is_update_step
            optimizer.step()
            scheduler.step()
            if is_update:
                updates.append(_note(optimizer, ever))
    return {
        "movement": asdict(movement),
        "channels": {name: len(flags) for name, flags in ever.items()},
        "updates": updates,
        "first_loss": losses[0],
        "last_loss": fmean(losses[-LAST:]),
    }


def _note(optimizer: SparseOptimizer, ever: dict[str, Tensor]) -> Record:
    """What is live now; channels that are, by layer, are added to those that were ``ever`` live."""
    # The outputs of the model are none of its channels.
    layers = [layer for layer in optimizer.layers if layer.weight.dim() > 2 and not layer.is_dense]
    live = {layer.name: layer.mask.flatten(1).any(1) for layer in layers}
    ever.update({name: flags | ever.get(name, flags) for name, flags in live.items()})
    return {
        "step": optimizer.steps,
        "live": {name: int(flags.sum()) for name, flags in live.items()},
        "ever": {name: int(flags.sum()) for name, flags in ever.items()},
        "weights": {layer.name: layer.ever_live / layer.numel for layer in layers},
    }


def _optimizer(movement: Movement, model: nn.Module) -> SparseOptimizer:
    groups = find_channel_groups(model, torch.randn(2, *IMAGE))
    return SparseOptimizer(
        torch.optim.SGD(
            model.parameters(),
            lr=movement.lr,
            momentum=movement.momentum,
            weight_decay=movement.weight_decay,
            nesterov=True,
        ),
        model,
        method=RigLStruct(groups=groups) if movement.method == CHANNELS else movement.method,
        density=movement.density,
        init="uniform",
        total_steps=movement.steps,
        delta_t=movement.delta_t,
        alpha=movement.alpha,
        seed=movement.seed,
    )


def _batches(movement: Movement, images: Split) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(movement.seed)
    while True:
        yield from images.shuffled(movement.batch_size, generator)


def report_lines(records: Sequence[Record], _: Path) -> list[str]:
    """A subsection for each data set, network and density."""
    lines = ["## Masks that move", ""]
    lines += paragraph(
        "A short training, and after each update the channels of each layer that are live or have "
        "ever been. A channel of `srigl` is a neuron, a filter with live weights; what moves there "
        "is weights, and layers with more of them count. Updates end after three quarters."
    )
    groups: dict[Movement, list[Record]] = defaultdict(list)
    for record in records:
        groups[Movement(**{**record["movement"], "method": ""})].append(record)
    for about, together in groups.items():
        heading = f"{about.workload} on {about.data}, density {about.density}"
        settings = [f"{key} {value}" for key, value in asdict(about).items() if key in SETTINGS]
        lines += [f"### Movement: {heading}", "", *paragraph(made_with(together[0]))]
        lines += paragraph(f"SGD and a one-cycle schedule, uniform; {', '.join(settings)}.")
        rows = [[record["movement"]["method"], *cells(record)] for record in together]
        lines += table(["method", *COLUMNS], rows)
    return lines


def cells(record: Record) -> list[str]:
    """What one run says in ``COLUMNS``."""
    channels = sum(record["channels"].values())
    first, last = record["updates"][0], record["updates"][-1]
    moving = "weights" if record["movement"]["method"] == NEURONS else "ever"
    grew = [name for name in record["channels"] if last[moving][name] > first[moving][name]]
    return [
        " -> ".join(f"{sum(one['ever'].values()) / channels:.1%}" for one in (first, last)),
        f"{len(grew)} of {len(record['channels'])}",
        f"{sum(last['live'].values()) / channels:.1%}",
        f"{record['first_loss']:.2f}, {record['last_loss']:.2f}",
    ]
