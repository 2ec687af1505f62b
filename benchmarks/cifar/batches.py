"""Batches of uint8 images, augmented and normalised one batch at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cifar.config import AugmentationConfig, Protocol
from benchmarks.cifar.data import Dataset
from benchmarks.cifar.settings import ProtocolError

# As in torchvision: a crop is drawn until it lies within the image, but not more often than this.
TRIES = 10
LOG_RATIO = math.log(4 / 3)


class Split:
    """Images and labels on the training device, in normalised batches.

    Args:
        images: ``uint8``, shape ``(N, H, W, 3)``.
        labels: ``int64``, shape ``(N,)``.
        mean: The mean of each channel, in [0, 1], shape ``(3,)``; ``std`` likewise.
        augmentation: Random crops and mirroring; None leaves the images unchanged.
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
        self._crop: PaddedCrop | ResizedCrop
        if augmentation is not None and augmentation.min_scale is not None:
            self._crop = ResizedCrop(images.to(device), augmentation.min_scale)
        else:
            padding = 0 if augmentation is None else augmentation.crop_padding
            self._crop = PaddedCrop(images.to(device), padding)
        # One multiplication and one addition, instead of two divisions and a subtraction.
        self._scale = (1.0 / (255.0 * std)).view(1, 3, 1, 1).to(device)
        self._shift = (-mean / std).view(1, 3, 1, 1).to(device)
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def __len__(self) -> int:
        return len(self.labels)

    def shuffled(
        self, batch_size: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in random order, augmented; the last batch may be smaller."""
        flip = self.augmentation is not None and self.augmentation.flip
        order = torch.randperm(len(self), generator=generator)
        drawn = []
        for indices in order.split(batch_size):
            crops = self._crop.draw(len(indices), generator)
            mirrored = torch.rand(len(indices), generator=generator) < 0.5 if flip else None
            drawn.append((*crops, mirrored) if mirrored is not None else crops)
        # The numbers of all batches are copied together: a copy for each batch would make a GPU and
        # Python wait for each other.
        columns = (torch.cat(column).to(self.labels.device) for column in zip(*drawn, strict=True))
        batches = (column.split(batch_size) for column in (order.to(self.labels.device), *columns))
        for indices, *crops_and_flips in zip(*batches, strict=True):
            mirrored = crops_and_flips.pop() if flip else None
            pixels = self._crop.take(indices, tuple(crops_and_flips))
            if mirrored is not None:
                pixels = torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(-1), pixels)
            yield self._normalised(pixels), self.labels[indices]

    def in_order(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All images once, in their order, without augmentation."""
        if self.augmentation is not None:
            raise ValueError("an augmented split has no plain batches; make one without")
        for indices in torch.arange(len(self), device=self.labels.device).split(batch_size):
            zeros = torch.zeros_like(indices)
            yield self._normalised(self._crop.take(indices, (zeros, zeros))), self.labels[indices]

    def _normalised(self, pixels: Tensor) -> Tensor:
        images = pixels.float().mul_(self._scale).add_(self._shift)
        return images.contiguous(memory_format=self._format)


class Splits(NamedTuple):
    """The data of all runs of a protocol, on the training device."""

    train: Split
    validation: Split
    test: Split

    @property
    def device(self) -> torch.device:
        """The device of the images, which is the training device."""
        return self.train.labels.device


def splits_for(protocol: Protocol, dataset: Dataset, device: torch.device) -> Splits:
    """The splits of a data set; the last training images are for validation.

    Mean and standard deviation come from the training part alone.
    """
    images, labels, test, test_labels = (torch.from_numpy(np.array(array)) for array in dataset)
    cut = len(images) - held_out(len(images), protocol.training.validation_fraction)
    mean, std = channel_statistics(images[:cut])
    is_last = protocol.training.channels_last
    split = functools.partial(Split, mean=mean, std=std, device=device, channels_last=is_last)
    train = split(images[:cut], labels[:cut], augmentation=protocol.augmentation)
    return Splits(train, split(images[cut:], labels[cut:]), split(test, test_labels))


def held_out(images: int, validation_fraction: float) -> int:
    """How many of the training images are for validation."""
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


class PaddedCrop:
    """Crops of the image's own size, out of the image padded by reflection.

    Args:
        images: ``uint8``, shape ``(N, H, W, C)``, on the training device.
        padding: Pixels on each side; 0 leaves the images unchanged.
    """

    def __init__(self, images: Tensor, padding: int) -> None:
        self._offsets = 2 * padding + 1
        height, width = images.shape[1:3]
        if padding:
            # torch pads the last two dimensions, and reflects floats only; numpy does both.
            pad = ((0, 0), (padding, padding), (padding, padding), (0, 0))
            padded = np.pad(images.cpu().numpy(), pad, mode="reflect")
            images = torch.from_numpy(padded).to(images.device)
        # A view of all crops that costs no memory, of shape (N, offsets, offsets, C, H, W).
        self._windows = images.unfold(1, height, 1).unfold(2, width, 1)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Row and column of each crop."""
        rows = torch.randint(self._offsets, (count,), generator=generator)
        columns = torch.randint(self._offsets, (count,), generator=generator)
        return rows, columns

    def take(self, indices: Tensor, crops: tuple[Tensor, ...]) -> Tensor:
        """The crops, ``uint8`` of shape ``(n, C, H, W)``."""
        rows, columns = (values.to(indices.device) for values in crops)
        return self._windows[indices, rows, columns]


class ResizedCrop:
    """Crops of random area and shape, resized to the image's size by linear interpolation.

    The same distribution as ``torchvision.transforms.RandomResizedCrop`` (Szegedy et al. 2015),
    with sides in the ratio of 3:4 to 4:3.

    Args:
        images: ``uint8``, shape ``(N, H, W, C)``, on the training device.
        min_scale: Smallest share of the image's area.
    """

    def __init__(self, images: Tensor, min_scale: float) -> None:
        self._images = images.permute(0, 3, 1, 2)
        self._min_scale = min_scale
        self._height, self._width = images.shape[1:3]

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Row, column, height and width of each crop."""
        area = torch.rand(TRIES, count, generator=generator)
        area = (self._min_scale + (1.0 - self._min_scale) * area) * (self._height * self._width)
        ratio = torch.exp(LOG_RATIO * (2.0 * torch.rand(TRIES, count, generator=generator) - 1.0))
        places = torch.rand(2, count, generator=generator)
        widths = torch.sqrt(area * ratio).round().long()
        heights = torch.sqrt(area / ratio).round().long()
        fits = (widths > 0) & (widths <= self._width) & (heights > 0) & (heights <= self._height)
        first = fits.to(torch.uint8).argmax(0, keepdim=True)
        found = fits.any(0)
        height = torch.where(found, heights.gather(0, first)[0], self._height)
        width = torch.where(found, widths.gather(0, first)[0], self._width)
        rows = (places[0] * (self._height - height + 1)).long()
        columns = (places[1] * (self._width - width + 1)).long()
        return rows, columns, height, width

    def take(self, indices: Tensor, crops: tuple[Tensor, ...]) -> Tensor:
        """The resized crops, floats in [0, 255] of shape ``(n, C, H, W)``."""
        rows, columns, heights, widths = (values.to(indices.device) for values in crops)
        y = _samples(rows, heights, self._height)
        x = _samples(columns, widths, self._width)
        shape = (len(indices), self._height, self._width)
        grid = torch.stack((x[:, None, :].expand(shape), y[:, :, None].expand(shape)), dim=-1)
        images = self._images[indices].float()
        return F.grid_sample(images, grid, mode="bilinear", align_corners=True)


def _samples(starts: Tensor, lengths: Tensor, size: int) -> Tensor:
    """The position of each of ``size`` output pixels along one side: [-1, 1] is the full image."""
    centers = (torch.arange(size, device=starts.device) + 0.5) / size
    inside = centers[None, :] * lengths[:, None] - 0.5
    # Pixels outside the crop do not count: at its edge only its last pixel counts.
    inside = torch.minimum(inside.clamp_min(0.0), lengths[:, None] - 1.0)
    return (starts[:, None] + inside) * (2.0 / (size - 1)) - 1.0
