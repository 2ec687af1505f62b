"""Which channels have ever been live, layer by layer, after each update of a short training."""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
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
from benchmarks.speed.models import IMAGE, WORKLOADS
from benchmarks.speed.movement_report import report_lines
from benchmarks.speed.naive_channels import NaiveChannels
from benchmarks.speed.records import Record, add_model
from sparseopt import (
    ChannelGroup,
    CompactedTraining,
    Method,
    RigLStruct,
    SparseLayer,
    SparseOptimizer,
    find_channel_groups,
)

__all__ = ["add_options", "measure", "report_lines"]

METHODS = ("rigl-struct", "srigl", "naive")
AUGMENTATIONS = {
    "cifar10": AugmentationConfig(crop_padding=4, flip=True),
    "digits": AugmentationConfig(crop_padding=0, flip=False),
}
VALIDATION_FRACTION = 0.1
#: Steps at the end whose mean loss is recorded, to show that something was learned.
LAST = 20


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
    dataset = load_dataset(data, data_dir, cache)
    train, _, _ = make_splits(
        dataset,
        VALIDATION_FRACTION,
        AUGMENTATIONS[data],
        torch.device("cpu"),
        channels_last=False,
    )
    return train


def watch(movement: Movement, images: Split) -> Record:
    """Train, and note after each update which channels have been live."""
    torch.manual_seed(movement.seed)
    model = WORKLOADS[movement.workload]()
    groups = find_channel_groups(model, torch.randn(2, *IMAGE))
    optimizer = _optimizer(movement, model, groups)
    scheduler = OneCycleLR(optimizer, movement.lr, total_steps=movement.steps)
    watcher = _Watcher(optimizer, groups, movement.method)
    compacted = movement.method == "rigl-struct"
    losses = []
    with CompactedTraining(model, optimizer) if compacted else contextlib.nullcontext():
        for inputs, labels in itertools.islice(_batches(movement, images), movement.steps):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.item())
            silent = watcher.silent() if optimizer.is_update_step else None
            optimizer.step()
            scheduler.step()
            if silent is not None:
                watcher.note(silent)
    return {
        "movement": asdict(movement),
        "channels": watcher.channels,
        "inner": sorted(watcher.inner),
        "updates": watcher.noted,
        "first_loss": losses[0],
        "last_loss": fmean(losses[-LAST:]),
    }


class _Watcher:
    """Which channels each weight makes, has made, and could not learn anything about.

    A layer is *inner* if nothing is added to what it makes.
    """

    def __init__(
        self, optimizer: SparseOptimizer, groups: Sequence[ChannelGroup], method: str
    ) -> None:
        self._optimizer = optimizer
        self._method = method
        self._groups = {group.name: group for group in groups if group.blocked is None}
        self.inner = {
            name for name, group in self._groups.items() if len(group.slices_of("producer")) == 1
        }
        # The outputs of the model are none of its channels.
        self._layers = {
            layer.name: layer
            for layer in optimizer.layers
            if layer.weight.dim() > 2 and not layer.is_dense
        }
        self._ever = self._live()
        self.channels = {name: len(channels) for name, channels in self._ever.items()}
        self.noted: list[Record] = []
        self.note({})

    def note(self, silent: dict[str, tuple[int, int]]) -> None:
        """Note what is live now."""
        live = self._live()
        self._ever = {name: ever | live[name] for name, ever in self._ever.items()}
        weights = {name: layer.ever_live / layer.numel for name, layer in self._layers.items()}
        self.noted.append(
            {
                "step": self._optimizer.steps,
                "live": {name: int(flags.sum()) for name, flags in live.items()},
                "ever": {name: int(flags.sum()) for name, flags in self._ever.items()},
                "weights": weights,
                "silent": silent,
            }
        )

    def silent(self) -> dict[str, tuple[int, int]]:
        """Return how many dropped channels have no gradient at all, of how many that are dropped.

        What growth goes by is meant: for the naive form the gradient of filters, for
        ``rigl-struct`` that of the columns that read the channel.
        """
        dropped = {name: ~live for name, live in self._live().items()}
        signals = {"naive": self._of_filters, "rigl-struct": self._of_readers}
        found = signals[self._method]() if self._method in signals else {}
        return {
            name: (int((dropped[name] & ~signal).sum()), int(dropped[name].sum()))
            for name, signal in sorted(found.items())
        }

    def _of_filters(self) -> dict[str, Tensor]:
        return {name: _by_channel(_gradient(layer)) for name, layer in self._layers.items()}

    def _of_readers(self) -> dict[str, Tensor]:
        gradients = {layer.name: _gradient(layer) for layer in self._optimizer.layers}
        return {
            name: torch.stack(
                [
                    _by_channel(gradients[part.name], part.dim)[part.index].any(1)
                    for part in group.slices_of("consumer")
                ]
            ).any(0)
            for name, group in self._groups.items()
            if name in self._layers
        }

    def _live(self) -> dict[str, Tensor]:
        masks = self._optimizer.masks
        return {name: _by_channel(masks[name]) for name in self._layers}


def _optimizer(
    movement: Movement, model: nn.Module, groups: Sequence[ChannelGroup]
) -> SparseOptimizer:
    naive = movement.method == "naive"
    methods: dict[str, Method] = {
        "rigl-struct": RigLStruct(groups=groups),
        "naive": NaiveChannels(),
    }
    return SparseOptimizer(
        torch.optim.SGD(
            model.parameters(),
            lr=movement.lr,
            momentum=movement.momentum,
            weight_decay=movement.weight_decay,
            nesterov=True,
        ),
        model,
        method=methods.get(movement.method, movement.method),
        # As many filters as rigl-struct keeps: a channel that it drops owns columns too.
        density=movement.density**0.5 if naive else movement.density,
        init=_convolutions_but_the_first if naive else "uniform",
        total_steps=movement.steps,
        delta_t=movement.delta_t,
        alpha=movement.alpha,
        seed=movement.seed,
    )


def _convolutions_but_the_first(
    shapes: Mapping[str, tuple[int, ...]], density: float
) -> Mapping[str, float]:
    first, *_ = shapes
    return {
        name: density if len(shape) > 2 and name != first else 1.0 for name, shape in shapes.items()
    }


def _batches(movement: Movement, images: Split) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(movement.seed)
    while True:
        yield from images.shuffled(movement.batch_size, generator)


def _gradient(layer: SparseLayer) -> Tensor:
    assert layer.weight.grad is not None
    return layer.weight.grad != 0


def _by_channel(flags: Tensor, dim: int = 0) -> Tensor:
    """Return for each index along ``dim`` whether any flag is set."""
    return flags.movedim(dim, 0).flatten(1).any(1)
