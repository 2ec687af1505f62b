"""CIFAR-10 on the training device, in augmented batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.cifar.data import load_dataset

PADDING = 4


@dataclass(frozen=True)
class Images:
    """Images and labels, all on one device.

    Attributes:
        train: float, ``(images, 3, 32 + 2 * PADDING, 32 + 2 * PADDING)``: normalised and padded.
        train_labels: int64, ``(images,)``.
        test: float, ``(images, 3, 32, 32)``.
        test_labels: int64, ``(images,)``.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    def batches(
        self, batch_size: int, generator: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in random order, cropped and mirrored, without a last incomplete batch."""
        device = self.train.device
        count = len(self.train_labels) // batch_size * batch_size
        order = torch.randperm(len(self.train_labels), generator=generator)[:count]
        size = self.test.shape[-1]
        along = torch.arange(size, device=device)
        for chosen in order.split(batch_size):
            rows, columns = torch.randint(2 * PADDING + 1, (2, batch_size), generator=generator)
            mirrored = torch.rand(batch_size, generator=generator) < 0.5
            index = chosen.to(device)
            y = along + rows.to(device)[:, None]
            x = along + columns.to(device)[:, None]
            x = torch.where(mirrored.to(device)[:, None], x.flip(1), x)
            crops = self.train[index[:, None, None], :, y[:, :, None], x[:, None, :]]
            yield crops.permute(0, 3, 1, 2).contiguous(), self.train_labels[index]


def load_images(data_dir: Path | None, cache: Path, device: torch.device, limit: int) -> Images:
    """Read CIFAR-10, or scikit-learn's digits if there is no folder.

    Args:
        data_dir: The folder of the images, as for ``benchmarks/cifar``.
        cache: The folder for decoded images.
        device: The device for the images.
        limit: The largest number of training images to use; 0 for all.
    """
    dataset = load_dataset("digits" if data_dir is None else "cifar10", data_dir, cache)
    train, train_labels, test, test_labels = (torch.from_numpy(np.array(one)) for one in dataset)
    if limit:
        train, train_labels = train[:limit], train_labels[:limit]
    pixels = train.float().div_(255.0)
    mean, std = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2)).clamp_min(1e-6)
    normalised = [
        one.float().div_(255.0).sub_(mean).div_(std).permute(0, 3, 1, 2) for one in (train, test)
    ]
    padded = torch.nn.functional.pad(normalised[0], (PADDING,) * 4)
    parts = (padded, train_labels, normalised[1].contiguous(), test_labels)
    return Images(*(part.to(device) for part in parts))
