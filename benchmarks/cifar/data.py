"""Images as uint8 tensors: found, checked, decoded once and cached.

Every source gives the same arrays: the images are put in the order of the SHA-256 of their
pixels. That is a fixed shuffle, which class folders need (the last tenth of a sorted tree would be
one class), and it makes the validation split independent of where the data came from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

IMAGE_SHAPE = (32, 32, 3)
SPLITS = ("train", "test")
TORCHVISION_FOLDER = "cifar-10-batches-py"
DIGITS_TEST_FRACTION = 0.2

Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


class DataError(Exception):
    """The data is missing or not what it should be; the message says what to do."""


@dataclass(frozen=True)
class Dataset:
    """Decoded images, ``uint8`` of shape ``(N, 32, 32, 3)``, with ``int64`` labels ``(N,)``."""

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


def load_dataset(name: str, data_dir: Path | None, cache_dir: Path) -> Dataset:
    """Return the data set, from the cache if it was decoded before.

    Args:
        name: ``"cifar10"`` or ``"digits"``.
        data_dir: For CIFAR-10, a folder with torchvision's ``cifar-10-batches-py`` or with class
            folders under ``train`` and ``test``. None downloads it through torchvision.
        cache_dir: Where the decoded arrays are kept.

    Raises:
        DataError: If the data is missing or malformed. Nothing has been written then.
    """
    if name == "digits":
        return load_digits()
    source = find_source(data_dir)
    cached = cache_dir / f"cifar10-{source.digest}"
    if not cached.is_dir():
        dataset = source.decode(cache_dir)
        _write_cache(dataset, cached)
    names = [field.name for field in dataclasses.fields(Dataset)]
    return Dataset(*(np.load(cached / f"{name}.npy", mmap_mode="r") for name in names))


@dataclass(frozen=True)
class Source:
    """Where CIFAR-10 comes from. ``digest`` changes when the files do."""

    kind: str
    root: Path | None
    digest: str

    def decode(self, cache_dir: Path) -> Dataset:
        """Read all images. Only a download writes, and only under ``cache_dir``."""
        if self.kind == "folders":
            assert self.root is not None
            return decode_class_folders(self.root)
        return decode_torchvision(self.root, cache_dir)


def find_source(data_dir: Path | None) -> Source:
    """Say what kind of data ``data_dir`` holds, without decoding it.

    Raises:
        DataError: If it holds neither torchvision's files nor class folders.
    """
    if data_dir is None or (data_dir / TORCHVISION_FOLDER).is_dir():
        return Source("torchvision", data_dir, "torchvision")
    if not data_dir.is_dir():
        raise DataError(f"--data-dir {data_dir}: there is no such folder. {_expectation()}")
    missing = [split for split in SPLITS if not (data_dir / split).is_dir()]
    if missing:
        raise DataError(
            f"--data-dir {data_dir}: no folder {' and no folder '.join(map(repr, missing))} in it, "
            f"and no {TORCHVISION_FOLDER!r} either. {_expectation()}"
        )
    return Source("folders", data_dir, _listing_digest(data_dir))


def _expectation() -> str:
    return (
        "Give a folder that holds either class folders, as in train/cat/1.png and test/cat/2.png "
        f"(32x32 images), or torchvision's own {TORCHVISION_FOLDER}; without --data-dir, "
        "torchvision downloads CIFAR-10. The preset 'smoke' needs no data at all."
    )


def _listing_digest(root: Path) -> str:
    digest = hashlib.sha256()
    for split in SPLITS:
        for folder, _, names in sorted(os.walk(root / split)):
            for name in sorted(names):
                path = Path(folder, name)
                entry = f"{path.relative_to(root).as_posix()}:{path.stat().st_size}\n"
                digest.update(entry.encode())
    return digest.hexdigest()[:12]


def decode_class_folders(root: Path) -> Dataset:
    """Decode ``root/{train,test}/<class>/<image>``.

    Raises:
        DataError: If a split has no images, the splits' classes differ, or an image is not 32x32.
    """
    from torchvision.datasets import ImageFolder

    folders = {}
    for split in SPLITS:
        try:
            folders[split] = ImageFolder(str(root / split))
        except FileNotFoundError as error:
            raise DataError(f"{root / split}: {error} {_expectation()}") from None
    if folders["train"].classes != folders["test"].classes:
        difference = set(folders["train"].classes) ^ set(folders["test"].classes)
        raise DataError(f"{root}: train and test differ in the classes {sorted(difference)}")
    arrays: list[Any] = []
    for split in SPLITS:
        paths = [Path(path) for path, _ in folders[split].samples]
        labels = np.array([label for _, label in folders[split].samples], dtype=np.int64)
        arrays += canonical_order(_decode_files(paths, f"decoding {split}"), labels)
    return Dataset(*arrays)


def _decode_files(paths: list[Path], description: str) -> Bytes:
    images = np.empty((len(paths), *IMAGE_SHAPE), dtype=np.uint8)
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(_decode_file, paths)
        for index, image in enumerate(
            tqdm(decoded, desc=description, total=len(paths), leave=False)
        ):
            images[index] = image
    return images


def _decode_file(path: Path) -> Bytes:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:
        raise DataError(f"{path} is not an image that Pillow can read") from None
    if pixels.shape != IMAGE_SHAPE:
        size = f"{pixels.shape[1]}x{pixels.shape[0]}"
        raise DataError(f"{path} is {size} pixels, but this benchmark takes images of 32x32")
    return pixels


def decode_torchvision(root: Path | None, cache_dir: Path) -> Dataset:
    """Decode torchvision's own CIFAR-10 files, downloaded first if ``root`` is None.

    Raises:
        DataError: If the files are incomplete, or if the download fails.
    """
    if root is not None:
        return _read_torchvision(root, download=False)
    with _vanishing_folder(cache_dir) as folder:
        return _read_torchvision(folder, download=True)


def _read_torchvision(root: Path, *, download: bool) -> Dataset:
    from torchvision.datasets import CIFAR10

    arrays: list[Any] = []
    for split in SPLITS:
        try:
            part = CIFAR10(str(root), train=split == "train", download=download)
        except OSError as error:
            raise DataError(f"could not download CIFAR-10: {error}. {_expectation()}") from error
        except RuntimeError as error:
            where = "the download" if download else root / TORCHVISION_FOLDER
            raise DataError(f"{where} is damaged or incomplete. {_expectation()}") from error
        arrays += canonical_order(part.data, np.array(part.targets, dtype=np.int64))
    return Dataset(*arrays)


def load_digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, enlarged from 8x8 to 3x32x32."""
    from sklearn.datasets import load_digits as load

    digits = load()
    grey = np.round(digits.images * (255.0 / digits.images.max())).astype(np.uint8)
    enlarged = grey.repeat(4, axis=1).repeat(4, axis=2)
    images = np.repeat(enlarged[..., None], 3, axis=3)
    images, labels = canonical_order(images, digits.target.astype(np.int64))
    train = len(images) - int(len(images) * DIGITS_TEST_FRACTION)
    return Dataset(images[:train], labels[:train], images[train:], labels[train:])


def canonical_order(images: Bytes, labels: Labels) -> tuple[Bytes, Labels]:
    """Images and labels in the order of the SHA-256 of the pixels, equal pixels by label."""
    keys = [hashlib.sha256(image.tobytes()).digest() for image in images]
    order = sorted(range(len(keys)), key=lambda index: (keys[index], labels[index]))
    return images[order], labels[order]


def _write_cache(dataset: Dataset, target: Path) -> None:
    """Write all arrays or none: the folder gets its name when it is complete."""
    with _vanishing_folder(target.parent) as folder:
        for name, array in dataset.arrays().items():
            np.save(folder / f"{name}.npy", array)
        # Another process may have written the same arrays meanwhile; either copy will do.
        with contextlib.suppress(OSError):
            folder.rename(target)


@contextlib.contextmanager
def _vanishing_folder(parent: Path) -> Iterator[Path]:
    """A temporary folder in ``parent``, gone at the end with any parents made for it."""
    made = [path for path in (parent, *parent.parents) if not path.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()
