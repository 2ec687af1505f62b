"""Decoded data sets, as arrays.

Images are in the order of the SHA-256 of their pixels, whatever files they are read from. This
order mixes the classes (the last tenth of a sorted tree would be one class), and it makes the
validation split independent of the source of the data.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks.cifar.datasets import CLASSES, DATASET_TITLES

DIGITS = "digits"
DIGITS_TEST_FRACTION = 0.2
IMAGE_SIZE = 32
SPLITS = ("train", "test")
TRAINING_IMAGES = 50_000  # of either CIFAR

Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


class DataError(Exception):
    """The data is missing or wrong; the message says how to fix that."""


class Cifar(NamedTuple):
    """A data set of torchvision: its names there, and some classes that identify it."""

    torchvision: str
    folder: str
    some_classes: set[str]


CIFARS = {
    "cifar10": Cifar("CIFAR10", "cifar-10-batches-py", {"cat", "ship"}),
    "cifar100": Cifar("CIFAR100", "cifar-100-python", {"aquarium_fish", "worm"}),
}


class Dataset(NamedTuple):
    """Decoded images, ``uint8`` of shape ``(N, 32, 32, 3)``, with ``int64`` labels ``(N,)``."""

    train_images: Bytes
    train_labels: Labels
    test_images: Bytes
    test_labels: Labels

    def fingerprint(self) -> str:
        """A short hash of all pixels and labels, equal if two runs used the same data."""
        digest = hashlib.sha256()
        for array in self:
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:12]


def load_dataset(name: str, data_dir: Path | None, cache_dir: Path) -> Dataset:
    """Return the data set, from the cache if it was decoded before."""
    if name == DIGITS:
        if data_dir is not None:
            raise DataError(
                f"--data-dir {data_dir}: the digits need no folder; leave it out, or train on its "
                "images with --set dataset=cifar10"
            )
        return load_digits()
    root = None if data_dir is None else _find(name, data_dir)
    tree = None if root is None or root.name == CIFARS[name].folder else root
    cached = cache_dir / f"{name}-{'torchvision' if tree is None else _listing_digest(tree)}"
    if not cached.is_dir():
        splits = _read_torchvision(name, root) if tree is None else _read_tree(tree)
        (train, test) = (_canonical_order(*split) for split in splits)
        _write_cache(Dataset(*train, *test), cached)
    return Dataset(*(np.load(cached / f"{name}.npy", mmap_mode="r") for name in Dataset._fields))


def noise(count: int, classes: int) -> Dataset:
    """Images of noise, to measure the time of a step without data."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (count, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    labels = np.arange(count, dtype=np.int64) % classes
    return Dataset(images, labels, images, labels)


def load_digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, enlarged from 8x8 to 3x32x32."""
    from sklearn.datasets import load_digits as load

    digits = load()
    grey = np.round(digits.images * (255.0 / digits.images.max())).astype(np.uint8)
    enlarged = grey.repeat(4, axis=1).repeat(4, axis=2)
    images = np.repeat(enlarged[..., None], 3, axis=3)
    images, labels = _canonical_order(images, digits.target.astype(np.int64))
    cut = len(images) - int(len(images) * DIGITS_TEST_FRACTION)
    return Dataset(images[:cut], labels[:cut], images[cut:], labels[cut:])


def _find(name: str, data_dir: Path) -> Path:
    """The folder of the data set: a folder of class folders, or torchvision's folder."""
    cifar = CIFARS[name]
    if not data_dir.is_dir():
        raise DataError(f"--data-dir {data_dir}: there is no such folder. {_expectation(name)}")
    if (data_dir / cifar.folder).is_dir():
        return data_dir / cifar.folder
    root = data_dir / name if (data_dir / name).is_dir() else data_dir
    missing = [split for split in SPLITS if not (root / split).is_dir()]
    if missing:
        raise DataError(
            f"--data-dir {data_dir}: no folder {' and no folder '.join(map(repr, missing))} in it, "
            f"and no {cifar.folder!r} either. {_expectation(name)}"
        )
    classes = {path.name for path in (root / "train").iterdir() if path.is_dir()}
    if len(classes) != CLASSES[name] or not cifar.some_classes <= classes:
        raise DataError(
            f"--data-dir {data_dir}: its class folders are not the classes of "
            f"{DATASET_TITLES[name]}. "
            f"{_expectation(name)}"
        )
    return root


def _expectation(name: str) -> str:
    return (
        f"For {DATASET_TITLES[name]}, give a folder with class folders, as in train/cat/1.png and "
        f"test/cat/2.png (32x32 images), or a folder that has these in its subfolder {name!r}, or "
        f"a folder with torchvision's own {CIFARS[name].folder}; without --data-dir, torchvision "
        "downloads it. The preset 'smoke' needs no data at all."
    )


def _listing_digest(root: Path) -> str:
    """A digest that changes with the files."""
    paths = sorted(path for split in SPLITS for path in (root / split).rglob("*.*"))
    lines = [f"{path.relative_to(root).as_posix()}:{path.stat().st_size}" for path in paths]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _read_tree(root: Path) -> list[tuple[Bytes, Labels]]:
    from torchvision.datasets import ImageFolder

    try:
        trees = [ImageFolder(str(root / split)) for split in SPLITS]
    except FileNotFoundError as error:
        raise DataError(f"{root}: {error}") from None
    differing = sorted(set(trees[0].classes) ^ set(trees[1].classes))
    if differing:
        raise DataError(f"{root}: train and test differ in the classes {differing}")
    splits = []
    for split, tree in zip(SPLITS, trees, strict=True):
        labels = np.array([label for _, label in tree.samples], dtype=np.int64)
        with ThreadPoolExecutor() as pool:
            decoded = pool.map(_decode_file, [Path(path) for path, _ in tree.samples])
            images = list(tqdm(decoded, f"decoding {split}", len(labels), leave=False))
        splits.append((np.stack(images), labels))
    return splits


def _decode_file(path: Path) -> Bytes:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            image = np.asarray(opened.convert("RGB"))
    except UnidentifiedImageError:
        raise DataError(f"{path} is not an image that Pillow can read") from None
    height, width, _ = image.shape
    if (height, width) != (IMAGE_SIZE, IMAGE_SIZE):
        raise DataError(f"{path} is {width}x{height} pixels, but images of the CIFARs are 32x32")
    return image


def _read_torchvision(name: str, root: Path | None) -> list[tuple[Bytes, Labels]]:
    """The images that torchvision reads from its folder ``root``, or downloads."""
    import torchvision

    cifar = CIFARS[name]
    reader: Any = getattr(torchvision.datasets, cifar.torchvision)
    download = root is None
    with TemporaryDirectory() if root is None else nullcontext(root.parent) as folder:
        try:
            parts = [reader(str(folder), split == "train", download=download) for split in SPLITS]
        except OSError as error:
            raise DataError(
                f"could not download {DATASET_TITLES[name]}: {error}. {_expectation(name)}"
            ) from error
        except RuntimeError as error:
            where = root or "the download"
            raise DataError(f"{where} is damaged or incomplete. {_expectation(name)}") from error
    return [(part.data, np.array(part.targets, dtype=np.int64)) for part in parts]


def _canonical_order(images: Bytes, labels: Labels) -> tuple[Bytes, Labels]:
    """Images and labels in the order of the SHA-256 of the pixels, equal pixels by label."""
    keys = [hashlib.sha256(image.tobytes()).digest() for image in images]
    order = sorted(range(len(keys)), key=lambda index: (keys[index], labels[index]))
    return images[order], labels[order]


def _write_cache(dataset: Dataset, target: Path) -> None:
    """Write all arrays or none: the folder gets its name after all are written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent) as folder:
        arrays = Path(folder, "arrays")
        arrays.mkdir()
        for name, array in dataset._asdict().items():
            np.save(arrays / f"{name}.npy", array)
        # Another process may have written the same arrays in the meantime; both copies are equal.
        with suppress(OSError):
            arrays.rename(target)
