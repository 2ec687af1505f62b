"""Batches out of uint8 images: augmented and normalised, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.cifar.augmentation import Augmenter
from benchmarks.cifar.config import AugmentationConfig, Protocol
from benchmarks.cifar.data import Dataset
from benchmarks.cifar.settings import ProtocolError


class Split:
    """Images and labels on the training device, handed out in normalised batches.

    Args:
        images: ``uint8``, shape ``(N, H, W, 3)``.
        labels: ``int64``, shape ``(N,)``.
        mean: Mean of each channel, in [0, 1], shape ``(3,)``.
        std: Standard deviation of each channel, shape ``(3,)``.
        device: Where the batches are needed.
        channels_last: Give batches in channels-last memory format.
        augmentation: Random crops and mirroring; None gives the images as they are.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: Tensor,
        std: Tensor,
        device: torch.device,
        *,
        channels_last: bool,
        augmentation: AugmentationConfig | None = None,
    ) -> None:
        self.augmentation = augmentation
        self.labels = labels.to(device)
        self._augmenter = Augmenter(images.to(device), augmentation)
        # One multiplication and one addition instead of a division and two of each.
        self._scale = (1.0 / (255.0 * std)).view(1, 3, 1, 1).to(device)
        self._shift = (-mean / std).view(1, 3, 1, 1).to(device)
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def __len__(self) -> int:
        return len(self.labels)

    def shuffled(
        self, batch_size: int, generator: torch.Generator, *, skip: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in random order, augmented; the last batch may be smaller."""
        order = torch.randperm(len(self), generator=generator)
        for number, indices in enumerate(order.split(batch_size)):
            draw = self._augmenter.draw(len(indices), generator)
            if number < skip:
                continue
            own = indices.to(self.labels.device)
            yield self._normalised(self._augmenter.take(own, draw)), self.labels[own]

    def in_order(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images once, in their order, not augmented."""
        if self.augmentation is not None:
            raise ValueError("an augmented split has no plain batches; make one without")
        for indices in torch.arange(len(self), device=self.labels.device).split(batch_size):
            yield self._normalised(self._augmenter.plain(indices)), self.labels[indices]

    def _normalised(self, pixels: Tensor) -> Tensor:
        images = pixels.float().mul_(self._scale).add_(self._shift)
        return images.contiguous(memory_format=self._format)


@dataclass(frozen=True)
class Splits:
    """The data of all runs of a protocol, on the training device."""

    train: Split
    validation: Split
    test: Split
    num_classes: int

    @property
    def device(self) -> torch.device:
        """Where the images are, and so where the training happens."""
        return self.train.labels.device


def splits_for(protocol: Protocol, dataset: Dataset, device: torch.device) -> Splits:
    """The splits that a protocol makes of a data set."""
    parts = make_splits(
        dataset,
        protocol.training.validation_fraction,
        protocol.augmentation,
        device,
        channels_last=protocol.training.channels_last,
    )
    return Splits(*parts, dataset.num_classes)


def make_splits(
    dataset: Dataset,
    validation_fraction: float,
    augmentation: AugmentationConfig,
    device: torch.device,
    *,
    channels_last: bool,
) -> tuple[Split, Split, Split]:
    """Training, validation and test split; validation is the last part of the training data.

    Mean and standard deviation come from the training part alone.
    """
    count = len(dataset.train_labels)
    cut = count - held_out(count, validation_fraction)
    images = torch.from_numpy(np.array(dataset.train_images))
    mean, std = channel_statistics(images[:cut])

    test = torch.from_numpy(np.array(dataset.test_images))
    parts = (
        (images[:cut], dataset.train_labels[:cut], augmentation),
        (images[cut:], dataset.train_labels[cut:], None),
        (test, dataset.test_labels, None),
    )
    train, validation, testing = (
        Split(
            part,
            torch.from_numpy(np.array(labels)),
            mean,
            std,
            device,
            channels_last=channels_last,
            augmentation=augment,
        )
        for part, labels, augment in parts
    )
    return train, validation, testing


def held_out(images: int, validation_fraction: float) -> int:
    """How many of the training images are for validation.

    Raises:
        ProtocolError: If that leaves none for one of the two.
    """
    count = int(images * validation_fraction)
    if not 0 < count < images:
        raise ProtocolError(
            f"training.validation_fraction {validation_fraction!r} of {images} images leaves "
            f"{count} for validation; both parts need at least one"
        )
    return count


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel in [0, 1], of ``uint8`` ``(N, H, W, C)``."""
    values = torch.arange(256, dtype=torch.float64) / 255.0
    counts = torch.stack([torch.bincount(c, minlength=256) for c in images.reshape(-1, 3).T])
    shares = counts.double() / counts.sum(1, keepdim=True)
    mean = shares @ values
    variance = (shares * (values - mean[:, None]) ** 2).sum(1)
    # A channel that never varies would otherwise be divided by zero.
    return mean.float(), variance.sqrt().float().clamp_min(1e-6)
