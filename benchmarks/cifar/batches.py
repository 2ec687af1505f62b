"""Batches out of uint8 images: random crops, mirroring and normalisation, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.cifar.data import Dataset, Labels
from benchmarks.cifar.protocol import AugmentationConfig


class Split:
    """Images and labels on the training device, handed out in normalised batches.

    Args:
        images: ``uint8``, shape ``(N, 32, 32, 3)``.
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
        padding = 0 if augmentation is None else augmentation.crop_padding
        self._windows = crop_windows(images.to(device), padding)
        self._offsets = 2 * padding + 1
        # One multiplication and one addition instead of a division and two of each.
        self._scale = (1.0 / (255.0 * std)).view(1, 3, 1, 1).to(device)
        self._shift = (-mean / std).view(1, 3, 1, 1).to(device)
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def __len__(self) -> int:
        return len(self.labels)

    def shuffled(
        self, batch_size: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in random order, augmented; the last batch may be smaller.

        Args:
            batch_size: Number of images in a batch.
            generator: CPU generator of order, crops and mirroring.
        """
        order = torch.randperm(len(self), generator=generator)
        for indices in order.split(batch_size):
            yield self._batch(indices, generator)

    def in_order(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images once, in their order, not augmented."""
        if self.augmentation is not None:
            raise ValueError("an augmented split has no plain batches; make one without")
        for indices in torch.arange(len(self)).split(batch_size):
            yield self._batch(indices, None)

    def _batch(self, indices: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        count = len(indices)
        rows = columns = torch.zeros(count, dtype=torch.int64)
        mirrored = None
        if self.augmentation is not None:
            rows = torch.randint(self._offsets, (count,), generator=generator)
            columns = torch.randint(self._offsets, (count,), generator=generator)
            if self.augmentation.flip:
                mirrored = torch.rand(count, generator=generator) < 0.5
        device = self.labels.device
        indices = indices.to(device)
        pixels = self._windows[indices, rows.to(device), columns.to(device)]
        if mirrored is not None:
            mirrored = mirrored.to(device).view(-1, 1, 1, 1)
            pixels = torch.where(mirrored, pixels.flip(-1), pixels)
        images = pixels.float().mul_(self._scale).add_(self._shift)
        return images.contiguous(memory_format=self._format), self.labels[indices]


def crop_windows(images: Tensor, padding: int) -> Tensor:
    """Every crop of every image, padded by reflection, as a view that costs no memory.

    Args:
        images: ``uint8``, shape ``(N, H, W, C)``.
        padding: Pixels added on each side.

    Returns:
        A view of shape ``(N, 2 padding + 1, 2 padding + 1, C, H, W)``; entry ``[n, y, x]`` is
        image n cropped at row y and column x of its padded self.
    """
    height, width = images.shape[1:3]
    if padding:
        # torch pads the last two dimensions, and reflects floats only; numpy does both.
        pad = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        padded = np.pad(images.cpu().numpy(), pad, mode="reflect")
        images = torch.from_numpy(padded).to(images.device)
    return images.unfold(1, height, 1).unfold(2, width, 1)


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
    held_out = int(len(dataset.train_labels) * validation_fraction)
    if not 0 < held_out < len(dataset.train_labels):
        raise ValueError(
            f"validation_fraction {validation_fraction!r} of {len(dataset.train_labels)} images "
            f"leaves {held_out} for validation; both parts need at least one"
        )
    cut = len(dataset.train_labels) - held_out
    images = torch.from_numpy(np.array(dataset.train_images))
    mean, std = channel_statistics(images[:cut])

    def split(part: Tensor, labels: Labels, augment: AugmentationConfig | None) -> Split:
        return Split(
            part,
            torch.from_numpy(np.array(labels)),
            mean,
            std,
            device,
            channels_last=channels_last,
            augmentation=augment,
        )

    return (
        split(images[:cut], dataset.train_labels[:cut], augmentation),
        split(images[cut:], dataset.train_labels[cut:], None),
        split(torch.from_numpy(np.array(dataset.test_images)), dataset.test_labels, None),
    )


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel in [0, 1], of ``uint8`` ``(N, H, W, C)``."""
    flat = images.reshape(-1, images.shape[-1])
    mean, std = [], []
    for channel in range(flat.shape[1]):
        counts = torch.bincount(flat[:, channel], minlength=256).double()
        values = torch.arange(256, dtype=torch.float64) / 255.0
        average = (counts * values).sum() / counts.sum()
        variance = (counts * (values - average) ** 2).sum() / counts.sum()
        mean.append(average)
        std.append(variance.sqrt())
    # A channel that never varies would otherwise be divided by zero.
    return torch.stack(mean).float(), torch.stack(std).clamp_min(1e-6).float()
