"""A protocol small enough for a test, and images made up for it."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.cifar.batches import Splits, splits_for
from benchmarks.cifar.config import Protocol, load_preset
from benchmarks.cifar.data import load_digits

# The command line sets this before it imports torch; in tests torch is imported already.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

TINY = """
summary = "reduced to seconds, for a test"
reduced = true
dataset = "digits"

[model]
depth = 10
width = 1
dropout = 0.3

[training]
epochs = 3
batch_size = 200
eval_batch_size = 100
validation_fraction = 0.1
bf16 = false
channels_last = true

[augmentation]
crop_padding = 2
flip = true

[optimizer]
lr = 0.1
momentum = 0.9
nesterov = true
weight_decay = 5e-4

[schedule]
kind = "one-cycle"
warmup_fraction = 0.3

[sparsity]
delta_t = 3
alpha = 0.3
t_end_fraction = 0.75

[choices]
methods = ["dense", "rigl"]
inits = ["erk"]
densities = [0.2]
seeds = [0]
"""


@pytest.fixture
def tiny_preset(tmp_path: Path) -> Path:
    """A file with a protocol of three epochs on digits."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


@pytest.fixture
def protocol(tiny_preset: Path) -> Protocol:
    """The protocol of ``tiny_preset``."""
    return load_preset(str(tiny_preset))


@pytest.fixture(scope="module")
def splits() -> Splits:
    """The first 300 digits, and 45 to test on."""
    digits = load_digits()
    digits = type(digits)(
        digits.train_images[:300],
        digits.train_labels[:300],
        digits.test_images[:45],
        digits.test_labels[:45],
    )
    return splits_for(load_preset("smoke"), digits, torch.device("cpu"))


CIFAR10_NAMES = [
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
]


def write_tree(root: Path, classes: list[str], train: int, test: int) -> Path:
    """Class folders with random images, with these numbers for training and for testing."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


def write_quick_preset(folder: Path) -> Path:
    """Write a protocol of twelve steps on the images of ``write_cifar_tree``."""
    path = folder / "quick.toml"
    methods = 'methods = ["static", "rigl", "pruning", "lottery"]'
    text = TINY.replace('methods = ["dense", "rigl"]', methods)
    text = text.replace('dataset = "digits"', 'dataset = "cifar10"')
    path.write_text(text.replace("\nbatch_size = 200", "\nbatch_size = 16"))
    return path


def write_cifar_tree(folder: Path) -> Path:
    """Write class folders as CIFAR-10 has them, with 6 and 2 random images of each class."""
    return write_tree(folder / "cifar", CIFAR10_NAMES, 6, 2)


@pytest.fixture
def quick_preset(tmp_path: Path) -> Path:
    """A file with a protocol of twelve steps on the images of ``cifar_tree``."""
    return write_quick_preset(tmp_path)


@pytest.fixture
def cifar_tree(tmp_path: Path) -> Path:
    """Class folders as CIFAR-10 has them, with 6 and 2 random images of each class."""
    return write_cifar_tree(tmp_path)


def end_after(steps, run, checkpoint, monkeypatch):
    """Train for this number of steps, then end as at Ctrl-C."""
    step, made = run.train_step, []

    def train_step(images, labels):
        if len(made) == steps:
            raise KeyboardInterrupt
        made.append(len(images))
        return step(images, labels)

    monkeypatch.setattr(run, "train_step", train_step)
    with pytest.raises(KeyboardInterrupt):
        run.finish(checkpoint)
