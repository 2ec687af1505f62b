"""Random crops and mirroring of whole batches at once."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cifar.config import AugmentationConfig

# As in torchvision: a crop is drawn until it lies within the image, but not more often than this.
TRIES = 10
LOG_RATIO = math.log(4 / 3)

#: A tensor of one number an image for each choice.
Draw = tuple[tuple[Tensor, ...], Tensor | None]


class PaddedCrop:
    """Crops of the image's own size, out of the image padded by reflection."""

    def __init__(self, images: Tensor, padding: int) -> None:
        self._windows = crop_windows(images, padding)
        self._offsets = 2 * padding + 1

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
    """Crops of random area and shape, resized to the whole by linear interpolation.

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
    """Where each of ``size`` output pixels lies along one side, in [-1, 1] of the whole image."""
    centers = (torch.arange(size, device=starts.device) + 0.5) / size
    inside = centers[None, :] * lengths[:, None] - 0.5
    # Pixels beside the crop are not part of it: at its edge its last pixel counts alone.
    inside = torch.minimum(inside.clamp_min(0.0), lengths[:, None] - 1.0)
    return (starts[:, None] + inside) * (2.0 / (size - 1)) - 1.0


class Augmenter:
    """Images as a network sees them in training; without a configuration, as they are.

    What is done to a batch is drawn apart from its use, so that a run that resumes within an epoch
    can pass over batches and leave the generator where it belongs.
    """

    def __init__(self, images: Tensor, config: AugmentationConfig | None) -> None:
        self._flip = config is not None and config.flip
        self._crop: PaddedCrop | ResizedCrop
        if config is not None and config.min_scale is not None:
            self._crop = ResizedCrop(images, config.min_scale)
        else:
            self._crop = PaddedCrop(images, 0 if config is None else config.crop_padding)

    def draw(self, count: int, generator: torch.Generator) -> Draw:
        """Draw what is done to a batch of ``count`` images: the crops, and which are mirrored."""
        crops = self._crop.draw(count, generator)
        return crops, torch.rand(count, generator=generator) < 0.5 if self._flip else None

    def take(self, indices: Tensor, draw: Draw) -> Tensor:
        """The augmented images, shape ``(n, C, H, W)`` with values in [0, 255]."""
        crops, mirrored = draw
        pixels = self._crop.take(indices, crops)
        if mirrored is None:
            return pixels
        return torch.where(mirrored.to(indices.device).view(-1, 1, 1, 1), pixels.flip(-1), pixels)

    def plain(self, indices: Tensor) -> Tensor:
        """The images as they are; only without a configuration."""
        zeros = torch.zeros(len(indices), dtype=torch.int64)
        return self._crop.take(indices, (zeros, zeros))


def crop_windows(images: Tensor, padding: int) -> Tensor:
    """Every crop of every image, padded by reflection, as a view that costs no memory.

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
