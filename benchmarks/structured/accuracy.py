"""Accuracy of a small vision transformer: dense, narrower, and sparse in several ways."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.common import arguments
from benchmarks.structured.data import Images, load_images
from benchmarks.structured.models import HEAD_DIM
from benchmarks.structured.protocol import METHODS, asked_settings, run_settings
from benchmarks.structured.records import (
    Record,
    ResultsError,
    fastest_epoch,
    hardware_of,
    read_records,
    read_results,
    refuse_other,
)
from benchmarks.structured.training import Run

#: Sizes of patches that cover an image of 32 x 32 pixels.
PATCHES = (1, 2, 4, 8, 16, 32)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this figure."""
    add = parser.add_argument
    add("--data-dir", type=Path, help="folder with CIFAR-10; without, scikit-learn's digits")
    add("--methods", nargs="+", choices=METHODS, default=METHODS)
    add(
        "--seeds",
        type=arguments.not_negative,
        nargs="+",
        default=[0, 1],
        help="default: %(default)s",
    )
    add(
        "--device",
        type=arguments.device,
        default="cpu",
        help="where to train (default: %(default)s)",
    )
    add("--epochs", type=arguments.positive, default=30, help="default: %(default)s")
    add("--batch-size", type=arguments.positive, default=256, help="default: %(default)s")
    add(
        "--lr",
        type=arguments.positive_number,
        default=1e-3,
        help="AdamW's, for batches of 256 (default: %(default)s)",
    )
    add(
        "--width",
        # `narrower` has half the width, and heads that fill it.
        type=arguments.multiple_of(2 * HEAD_DIM),
        default=192,
        help="of the residual stream (default: %(default)s)",
    )
    add("--depth", type=arguments.positive, default=6, help="blocks (default: %(default)s)")
    add(
        "--patch",
        type=int,
        choices=PATCHES,
        default=4,
        help="pixels of a patch's side (default: 4)",
    )
    add(
        "--density",
        type=arguments.density,
        default=0.25,
        help="of neurons and heads (default: %(default)s)",
    )
    add(
        "--weights",
        type=arguments.density,
        default=0.1,
        help="of srigl and rigl (default: %(default)s)",
    )
    add(
        "--delta-t",
        type=arguments.positive,
        default=50,
        help="steps between updates (default: %(default)s)",
    )
    add(
        "--images",
        type=arguments.not_negative,
        default=0,
        help="training images to use (default: 0, all)",
    )
    add("--only-data", action="store_true", help="decode the images, and train nothing")
    add(
        "--compacted",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train rigl-struct in CompactedTraining",
    )


def measure(options: argparse.Namespace) -> Iterator[tuple[str, Record]]:
    """Train every run that has no result yet; yields pairs of a file's name and the record.

    Raises:
        ResultsError: if the folder has results or a saved state of other options.
        argparse.ArgumentError: if a batch is larger than the data.
    """
    images = None
    if options.only_data:
        load_images(options.data_dir, options.out / "cache", torch.device("cpu"), 0)
        return
    for file, finished in read_results(options.out, "accuracy").items():
        refuse_other(file, run_settings(finished), asked_settings(options))
    for seed in options.seeds:
        for method in options.methods:
            name = f"accuracy-{method}-{seed}"
            if (options.out / f"{name}.json").exists():
                continue
            if images is None:
                images = _images_for_batches(options)
            epochs = epochs_of(method, options)
            run = Run(method, seed, options, images, epochs)
            yield name, run.finish(options.out / "checkpoints" / name)


def _images_for_batches(options: argparse.Namespace) -> Images:
    cache = options.out / "cache"
    images = load_images(options.data_dir, cache, options.device, options.images)
    count = len(images.train_labels)
    if options.batch_size > count:
        raise argparse.ArgumentError(
            None,
            f"argument --batch-size: must be at most {count}, the number of training images, "
            f"got {options.batch_size}",
        )
    return images


def epochs_of(method: str, options: argparse.Namespace) -> int:
    """How many epochs to train.

    They are ``--epochs``, or for ``rigl-same-time`` as many as take the time of ``rigl-struct``,
    according to the finished runs of all seeds.

    Raises:
        ResultsError: if ``rigl-struct`` or ``rigl`` has no result yet, or if the times of the
            results can't be compared.
    """
    if method != "rigl-same-time":
        return int(options.epochs)
    finished = read_records(options.out, "accuracy")
    structured, single = (
        [run for run in finished if run["method"] == other] for other in ("rigl-struct", "rigl")
    )
    if not (structured and single):
        raise ResultsError(
            f"{method} needs times in {options.out}: train rigl-struct and rigl first"
        )
    if len({hardware_of(run) for run in structured + single}) > 1:
        raise ResultsError(f"{method} needs rigl-struct and rigl trained on the same hardware")
    if not all(run["options"]["compacted"] for run in structured):
        raise ResultsError(f"{method} needs the times of rigl-struct with --compacted")
    times = [fastest_epoch(runs) for runs in (structured, single)]
    return max(1, round(options.epochs * times[0] / times[1]))
