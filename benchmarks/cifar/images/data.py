"""Images as uint8 tensors: found, checked, decoded once and cached.

Every source gives the same arrays: the images are put in the order of the SHA-256 of their
pixels. That is a fixed shuffle, which class folders need (the last tenth of a sorted tree would be
one class), and it makes the validation split independent of where the data came from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.cifar.images.sources import OWN, Bytes, Labels, find_source
from benchmarks.common.files import vanishing_folder

DIGITS = "digits"
DIGITS_TEST_FRACTION = 0.2
OWN_TEST_FRACTION = 0.1
# Training images, test images and classes of the data sets that are always the same.
SIZES = {"cifar10": (50_000, 10_000, 10), "cifar100": (50_000, 10_000, 100)}


@dataclass(frozen=True)
class Dataset:
    """Decoded images, ``uint8`` of shape ``(N, H, W, 3)``, with ``int64`` labels ``(N,)``."""

    train_images: Bytes
    train_labels: Labels
    test_images: Bytes
    test_labels: Labels

    @property
    def num_classes(self) -> int:
        """One more than the largest label."""
        return int(self.train_labels.max()) + 1

    def fingerprint(self) -> str:
        """A short hash of all pixels and labels, which says whether two runs saw one data set."""
        digest = hashlib.sha256()
        for array in self.arrays().values():
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:12]

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The four arrays by name, in the order in which they are hashed."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def load_dataset(
    name: str, data_dir: Path | None, cache_dir: Path, image_size: int = 32
) -> Dataset:
    """Return the data set, from the cache if it was decoded before.

    Args:
        name: ``"cifar10"``, ``"cifar100"``, ``"digits"`` or ``"folder"``.
        data_dir: A folder with torchvision's own files of the CIFARs or with class folders under
            ``train`` and ``test``, in it or in a folder with the data set's name in it. For
            ``"folder"``, any tree of class folders. None downloads a CIFAR through torchvision.
        cache_dir: Where the decoded arrays are kept.
        image_size: Height and width to which the images of ``"folder"`` are brought.

    Raises:
        DataError: If the data is missing or malformed. Nothing has been written then.
    """
    if name == DIGITS:
        return load_digits()
    source = find_source(name, data_dir)
    size = f"-{image_size}" if name == OWN else ""
    cached = cache_dir / f"{name}{size}-{source.digest}"
    if not cached.is_dir():
        splits = source.decode(cache_dir, image_size)
        if len(splits) == 1:
            splits = _cut(*canonical_order(*splits[0]), OWN_TEST_FRACTION)
        else:
            splits = [canonical_order(*split) for split in splits]
        _write_cache(Dataset(*splits[0], *splits[1]), cached)
    names = [field.name for field in dataclasses.fields(Dataset)]
    return Dataset(*(np.load(cached / f"{name}.npy", mmap_mode="r") for name in names))


def noise(count: int, image_size: int, classes: int) -> Dataset:
    """Images of noise, to measure how long a step takes where no data is at hand.

    Args:
        count: Number of training images, and of test images.
        image_size: Their height and width.
        classes: Number of classes.
    """
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, image_size, image_size, 3), dtype=np.uint8)
    labels = np.arange(count, dtype=np.int64) % classes
    return Dataset(images, labels, images, labels)


def load_digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, enlarged from 8x8 to 3x32x32."""
    from sklearn.datasets import load_digits as load

    digits = load()
    grey = np.round(digits.images * (255.0 / digits.images.max())).astype(np.uint8)
    enlarged = grey.repeat(4, axis=1).repeat(4, axis=2)
    images = np.repeat(enlarged[..., None], 3, axis=3)
    train, test = _cut(
        *canonical_order(images, digits.target.astype(np.int64)), DIGITS_TEST_FRACTION
    )
    return Dataset(*train, *test)


def canonical_order(images: Bytes, labels: Labels) -> tuple[Bytes, Labels]:
    """Images and labels in the order of the SHA-256 of the pixels, equal pixels by label."""
    keys = [hashlib.sha256(image.tobytes()).digest() for image in images]
    order = sorted(range(len(keys)), key=lambda index: (keys[index], labels[index]))
    return images[order], labels[order]


def _cut(images: Bytes, labels: Labels, test_fraction: float) -> list[tuple[Bytes, Labels]]:
    """All but the last images, and the last ones."""
    train = len(images) - max(1, int(len(images) * test_fraction))
    return [(images[:train], labels[:train]), (images[train:], labels[train:])]


def _write_cache(dataset: Dataset, target: Path) -> None:
    """Write all arrays or none: the folder gets its name when it is complete."""
    with vanishing_folder(target.parent) as folder:
        for name, array in dataset.arrays().items():
            np.save(folder / f"{name}.npy", array)
        # Another process may have written the same arrays meanwhile; either copy will do.
        with contextlib.suppress(OSError):
            folder.rename(target)
