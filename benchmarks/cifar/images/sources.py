"""Where images come from: torchvision's own files, or trees of class folders."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks.common.files import vanishing_folder

CIFAR_SIZE = 32
OWN = "folder"
TRAIN = "train"
TEST_NAMES = ("test", "val", "valid", "validation")
CIFAR10_CLASSES = frozenset(
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
)
# Four of the hundred are enough to know the others by.
CIFAR100_CLASSES = frozenset(["apple", "aquarium_fish", "willow_tree", "worm"])

Bytes = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
Images = tuple[Bytes, Labels]


class DataError(Exception):
    """The data is missing or not what it should be; the message says what to do."""


@dataclass(frozen=True)
class Cifar:
    """A data set that torchvision knows."""

    title: str
    torchvision: str
    folder: str
    classes: int
    some_classes: frozenset[str]


CIFARS = {
    "cifar10": Cifar("CIFAR-10", "CIFAR10", "cifar-10-batches-py", 10, CIFAR10_CLASSES),
    "cifar100": Cifar("CIFAR-100", "CIFAR100", "cifar-100-python", 100, CIFAR100_CLASSES),
}


@dataclass(frozen=True)
class Source:
    """Where a data set comes from. ``digest`` changes when the files do.

    ``folders`` are those of the training and the test images, or one of both; None stands for
    torchvision's own files, under ``root`` or to be downloaded.
    """

    name: str
    root: Path | None
    folders: tuple[Path, ...] | None
    digest: str

    def decode(self, cache_dir: Path, image_size: int) -> list[Images]:
        """Read all images, split by split. Only a download writes, and only under ``cache_dir``."""
        if self.folders is None:
            return _decode_torchvision(self.name, self.root, cache_dir)
        return decode_class_folders(self.folders, image_size, resize=self.name == OWN)


def find_source(name: str, data_dir: Path | None) -> Source:
    """Say what kind of data ``data_dir`` holds, without decoding it.

    Raises:
        DataError: If it does not hold the data set called ``name``.
    """
    if data_dir is not None:
        check_folder(data_dir, name)
    if name == OWN:
        return _own_source(data_dir)
    cifar = CIFARS[name]
    if data_dir is None or (data_dir / cifar.folder).is_dir():
        return Source(name, data_dir, None, "torchvision")
    root = data_dir / name if (data_dir / name).is_dir() else data_dir
    missing = [split for split in (TRAIN, "test") if not (root / split).is_dir()]
    if missing:
        raise DataError(
            f"--data-dir {data_dir}: no folder {' and no folder '.join(map(repr, missing))} in it, "
            f"and no {cifar.folder!r} either. {_expectation(name)}"
        )
    if not _is_cifar(cifar, root):
        raise DataError(
            f"--data-dir {data_dir}: its class folders are not those of {cifar.title}. "
            f"{_expectation(name)}"
        )
    folders = (root / TRAIN, root / "test")
    return Source(name, root, folders, _listing_digest(folders))


def check_folder(data_dir: Path, name: str) -> None:
    """Raise a ``DataError`` that says what the data set ``name`` needs, if there is no folder."""
    if not data_dir.is_dir():
        raise DataError(f"--data-dir {data_dir}: there is no such folder. {_expectation(name)}")


def recognise(data_dir: Path) -> set[str]:
    """Which of the data sets that torchvision knows are in a folder."""
    found = set()
    for name, cifar in CIFARS.items():
        trees = (data_dir, data_dir / name)
        if (data_dir / cifar.folder).is_dir() or any(_is_cifar(cifar, tree) for tree in trees):
            found.add(name)
    return found


def _is_cifar(cifar: Cifar, root: Path) -> bool:
    classes = set(_folders(root / TRAIN))
    return len(classes) == cifar.classes and cifar.some_classes <= classes


def _folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def _own_source(data_dir: Path | None) -> Source:
    if data_dir is None:
        raise DataError(f"the data set 'folder' needs --data-dir. {_expectation(OWN)}")
    folders: tuple[Path, ...] = (data_dir,)
    if (data_dir / TRAIN).is_dir():
        test = [data_dir / name for name in TEST_NAMES if (data_dir / name).is_dir()]
        if not test:
            names = ", ".join(map(repr, TEST_NAMES))
            raise DataError(
                f"--data-dir {data_dir}: there is {TRAIN!r} but none of {names} beside it. "
                f"{_expectation(OWN)}"
            )
        folders = (data_dir / TRAIN, test[0])
    return Source(OWN, data_dir, folders, _listing_digest(folders))


def _expectation(name: str) -> str:
    if name not in CIFARS:
        return (
            "Give a folder with a folder of images for each class, or with two such trees, 'train' "
            "and 'test'."
        )
    cifar = CIFARS[name]
    return (
        f"For {cifar.title}, give a folder that holds either class folders, as in train/cat/1.png "
        f"and test/cat/2.png (32x32 images), in it or in {name!r} in it, or torchvision's own "
        f"{cifar.folder}; without --data-dir, torchvision downloads it. The preset 'smoke' needs "
        "no data at all."
    )


def _listing_digest(folders: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for root in folders:
        for folder, _, names in sorted(os.walk(root)):
            for name in sorted(names):
                path = Path(folder, name)
                place = path.relative_to(root.parent).as_posix()
                digest.update(f"{place}:{path.stat().st_size}\n".encode())
    return digest.hexdigest()[:12]


def decode_class_folders(
    folders: tuple[Path, ...], image_size: int = CIFAR_SIZE, *, resize: bool = False
) -> list[Images]:
    """Decode trees of ``<class>/<image>``.

    Args:
        folders: The trees, which must have the same classes.
        image_size: Height and width of the images.
        resize: Bring other images to that size, the shorter side first, and keep their middle.

    Raises:
        DataError: If a tree has no images, the classes differ, or an image has another size.
    """
    from torchvision.datasets import ImageFolder

    trees = []
    for folder in folders:
        try:
            trees.append(ImageFolder(str(folder)))
        except FileNotFoundError as error:
            raise DataError(f"{folder}: {error}") from None
    for tree in trees[1:]:
        if tree.classes != trees[0].classes:
            difference = sorted(set(tree.classes) ^ set(trees[0].classes))
            raise DataError(
                f"{folders[0].parent}: train and test differ in the classes {difference}"
            )
    splits = []
    for folder, tree in zip(folders, trees, strict=True):
        paths = [Path(path) for path, _ in tree.samples]
        labels = np.array([label for _, label in tree.samples], dtype=np.int64)
        splits.append((_decode_files(paths, f"decoding {folder.name}", image_size, resize), labels))
    return splits


def _decode_files(paths: list[Path], description: str, image_size: int, resize: bool) -> Bytes:
    images = np.empty((len(paths), image_size, image_size, 3), dtype=np.uint8)
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(lambda path: _decode_file(path, image_size, resize), paths)
        for index, image in enumerate(
            tqdm(decoded, desc=description, total=len(paths), leave=False)
        ):
            images[index] = image
    return images


def _decode_file(path: Path, image_size: int, resize: bool) -> Bytes:
    from PIL import Image, ImageOps, UnidentifiedImageError

    size = (image_size, image_size)
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except UnidentifiedImageError:
        raise DataError(f"{path} is not an image that Pillow can read") from None
    if image.size != size and resize:
        image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    if image.size != size:
        width, height = image.size
        raise DataError(
            f"{path} is {width}x{height} pixels, but images of the CIFARs are "
            f"{image_size}x{image_size}"
        )
    return np.asarray(image)


def _decode_torchvision(name: str, root: Path | None, cache_dir: Path) -> list[Images]:
    if root is not None:
        return _read_torchvision(name, root, download=False)
    with vanishing_folder(cache_dir) as folder:
        return _read_torchvision(name, folder, download=True)


def _read_torchvision(name: str, root: Path, *, download: bool) -> list[Images]:
    import torchvision

    cifar = CIFARS[name]
    reader: Any = getattr(torchvision.datasets, cifar.torchvision)
    splits = []
    for train in (True, False):
        try:
            part = reader(str(root), train=train, download=download)
        except OSError as error:
            raise DataError(
                f"could not download {cifar.title}: {error}. {_expectation(name)}"
            ) from error
        except RuntimeError as error:
            where = "the download" if download else root / cifar.folder
            raise DataError(f"{where} is damaged or incomplete. {_expectation(name)}") from error
        splits.append((part.data, np.array(part.targets, dtype=np.int64)))
    return splits
