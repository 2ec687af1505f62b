"""Accuracy of a small vision transformer: dense, narrower, and sparse in several ways."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.common.environment import describe_environment
from benchmarks.structured.data import Images, load_images
from benchmarks.structured.models import HEAD_DIM, Shape, ViT, shape_of
from benchmarks.structured.records import Record, fastest_epoch, hardware_of, read_records
from sparseopt import CompactedTraining, RigLStruct, SparseOptimizer, SRigL, compact, speed_up

METHODS = ("dense", "narrower", "thinner", "rigl-struct", "srigl", "rigl", "rigl-same-time")
#: The trained networks, each with its words in the report.
MEANING = {
    "dense": "the network itself",
    "narrower": "a residual stream of half the width, and so a quarter of the weights",
    "thinner": "the full width, with as many heads and neurons as `rigl-struct` leaves",
    "rigl-struct": "neurons move, and heads if enough of them are live, in `CompactedTraining`; "
    "then `compact` removes what is dropped",
    "srigl": "`SRigL(gamma=.95)`, on a CPU with `speed_up`; `compact` removes ablated neurons",
    "rigl": "single weights move, on a CPU with `speed_up`",
    "rigl-same-time": "`rigl`, for as many epochs as take the training time of `rigl-struct`",
}
#: Methods with masks of single weights.
WEIGHTS_MOVE = frozenset({"srigl", "rigl", "rigl-same-time"})
WARM_UP = 0.1
LABEL_SMOOTHING = 0.1


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of this figure."""
    add = parser.add_argument
    add("--data-dir", type=Path, help="folder with CIFAR-10; without, scikit-learn's digits")
    add("--methods", nargs="+", choices=METHODS, default=METHODS)
    add("--seeds", type=int, nargs="+", default=[0, 1], help="default: %(default)s")
    add("--device", default="cpu", help="where to train (default: %(default)s)")
    add("--epochs", type=int, default=30, help="default: %(default)s")
    add("--batch-size", type=int, default=256, help="default: %(default)s")
    add("--lr", type=float, default=1e-3, help="AdamW's, for batches of 256 (default: %(default)s)")
    add("--width", type=int, default=192, help="of the residual stream (default: %(default)s)")
    add("--depth", type=int, default=6, help="blocks (default: %(default)s)")
    add("--patch", type=int, default=4, help="pixels of a patch's side (default: %(default)s)")
    add("--density", type=float, default=0.25, help="of neurons and heads (default: %(default)s)")
    add("--weights", type=float, default=0.1, help="of srigl and rigl (default: %(default)s)")
    add("--delta-t", type=int, default=50, help="steps between updates (default: %(default)s)")
    add("--images", type=int, default=0, help="training images to use (default: all)")
    add("--only-data", action="store_true", help="decode the images, and train nothing")
    add(
        "--compacted",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train rigl-struct in CompactedTraining",
    )


def measure(options: argparse.Namespace) -> Iterator[tuple[str, Record]]:
    """Train every run that has no result yet; yields pairs of a file's name and the record."""
    images = None
    if options.only_data:
        load_images(options.data_dir, options.out / "cache", torch.device("cpu"), 0)
        return
    for seed in options.seeds:
        for method in options.methods:
            name = f"accuracy-{method}-{seed}"
            if (options.out / f"{name}.json").exists():
                continue
            if images is None:
                device = torch.device(options.device)
                cache = options.out / "cache"
                images = load_images(options.data_dir, cache, device, options.images)
            epochs = epochs_of(method, options)
            run = Run(method, seed, options, images, epochs)
            yield name, run.finish(options.out / "checkpoints" / name)


def epochs_of(method: str, options: argparse.Namespace) -> int:
    """How many epochs to train.

    They are ``--epochs``, or for ``rigl-same-time`` as many as take the time of ``rigl-struct``,
    according to the finished runs of all seeds.

    Raises:
        SystemExit: if ``rigl-struct`` or ``rigl`` has no result yet, or if the times of the results
            can't be compared.
    """
    if method != "rigl-same-time":
        return int(options.epochs)
    finished = read_records(options.out, "accuracy")
    structured, single = (
        [run for run in finished if run["method"] == other] for other in ("rigl-struct", "rigl")
    )
    if not (structured and single):
        raise SystemExit(f"{method} needs times in {options.out}: train rigl-struct and rigl first")
    if len({hardware_of(run) for run in structured + single}) > 1:
        raise SystemExit(f"{method} needs rigl-struct and rigl trained on the same hardware")
    if not all(run["options"]["compacted"] for run in structured):
        raise SystemExit(f"{method} needs the times of rigl-struct with --compacted")
    times = [fastest_epoch(runs) for runs in (structured, single)]
    return max(1, round(options.epochs * times[0] / times[1]))


def shape_at_first(method: str, options: argparse.Namespace) -> Shape:
    """The widths of a method's network when its training begins."""
    dense = Shape.uniform(options.depth, options.width, HEAD_DIM)
    if method == "narrower":
        return Shape.uniform(options.depth, options.width // 2, HEAD_DIM)
    if method == "thinner":
        return dense.thinner(options.density)
    return dense


class Run:
    """One network in training, from its seed to its result; resumable after every epoch."""

    def __init__(
        self, method: str, seed: int, options: argparse.Namespace, images: Images, epochs: int
    ) -> None:
        self.method = method
        self.total_epochs = epochs
        self.seed = seed
        self.options = options
        self.images = images
        self.device = images.train.device
        self.steps = epochs * (len(images.train_labels) // options.batch_size)
        torch.manual_seed(seed)
        self.model = ViT(shape_at_first(method, options), patch=options.patch).to(self.device)
        self.example = images.test[:2]
        self.optimizer = self._optimizer()
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.generator = torch.Generator().manual_seed(seed)
        self.epochs: list[Record] = []

    def finish(self, checkpoint: Path) -> Record:
        """Train the remaining epochs, saving after each."""
        if checkpoint.exists():
            self._restore(checkpoint)
        faster = self._faster()
        with faster:
            while len(self.epochs) < self.total_epochs:
                self.epochs.append(self._epoch())
                print(f"{self.method} {self.seed}: {json.dumps(self.epochs[-1])}", flush=True)
                self._save(checkpoint)
        record = self._record()
        checkpoint.unlink(missing_ok=True)
        return record

    def _optimizer(self) -> torch.optim.Optimizer:
        options = self.options
        inner = torch.optim.AdamW(
            self.model.parameters(), lr=options.lr * options.batch_size / 256, weight_decay=0.05
        )
        settings = {"total_steps": self.steps, "delta_t": options.delta_t, "seed": self.seed}
        if self.method == "rigl-struct":
            return SparseOptimizer(
                inner,
                self.model,
                method=RigLStruct(kinds=dict.fromkeys(("neuron", "head"), options.density)),
                example_inputs=self.example,
                **settings,
            )
        if self.method in WEIGHTS_MOVE:
            method = SRigL(gamma=0.95) if self.method == "srigl" else "rigl"
            densities = {"embed": 1.0, "head": 1.0, "*": options.weights}
            return SparseOptimizer(inner, self.model, method=method, init=densities, **settings)
        return inner

    def _rate(self, step: int) -> float:
        """Linear warm-up and a cosine, as a share of the learning rate."""
        warm_up = max(1, round(WARM_UP * self.steps))
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, self.steps - warm_up)))

    def _faster(self) -> Any:
        """The context manager that makes this training faster."""
        if isinstance(self.optimizer, SparseOptimizer):
            if self.method == "rigl-struct" and self.options.compacted:
                return CompactedTraining(self.model, self.optimizer, example_inputs=self.example)
            if self.method in WEIGHTS_MOVE and self.device.type == "cpu":
                return speed_up(self.model, self.optimizer)
        return nullcontext()

    def _epoch(self) -> Record:
        self.model.train()
        start, losses = time.perf_counter(), []
        for images, labels in self.images.batches(self.options.batch_size, self.generator):
            self.optimizer.zero_grad()
            with self._autocast():
                logits = self.model(images)
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=LABEL_SMOOTHING)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.scheduler.step()
            losses.append(loss.detach())
        mean = float(torch.stack(losses).mean())
        seconds = time.perf_counter() - start
        last = len(self.epochs) + 1 == self.total_epochs
        tested = {"test": self.accuracy(self.model)} if last or len(self.epochs) % 5 == 4 else {}
        return {"loss": round(mean, 4), "seconds": round(seconds, 2), **tested}

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float:
        """The share of test images that are classified correctly."""
        model.eval()
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        parts = zip(self.images.test.split(1000), self.images.test_labels.split(1000), strict=True)
        for images, labels in parts:
            with self._autocast():
                correct += (model(images).argmax(1) == labels).sum()
        return int(correct) / len(self.images.test_labels)

    def _autocast(self) -> Any:
        enabled = self.device.type == "cuda"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _record(self) -> Record:
        record = {
            "method": self.method,
            "seed": self.seed,
            "options": {
                name: value
                for name, value in vars(self.options).items()
                if isinstance(value, int | float) and name != "threads"
            },
            "data": "digits" if self.options.data_dir is None else "cifar10",
            "accuracy": self.epochs[-1]["test"],
            "epochs": self.epochs,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "environment": describe_environment(self.device),
        }
        if isinstance(self.optimizer, SparseOptimizer):
            record |= self._sparsity(self.optimizer)
        return record

    def _sparsity(self, optimizer: SparseOptimizer) -> Record:
        compacted = compact(self.model, optimizer, example_inputs=self.example)
        smaller = compacted.model
        shape = shape_of(smaller)
        return {
            "density": optimizer.density,
            "compacted_accuracy": self.accuracy(smaller),
            "compacted_parameters": sum(one.numel() for one in smaller.parameters()),
            "heads": shape.heads,
            "neurons": shape.neurons,
            # Shares of the weights that are live, that are live of those that `compact` leaves,
            # and that have ever been live, by sparse layer.
            "live": {layer.name: layer.density for layer in optimizer.layers if not layer.is_dense},
            "live_compacted": {
                name: float(mask.float().mean())
                for name, mask in compacted.masks.items()
                if not mask.all()
            },
            "ever": {
                one.name: one.ever_live / one.numel for one in optimizer.layers if not one.is_dense
            },
        }

    def _save(self, checkpoint: Path) -> None:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "generator": self.generator.get_state(),
            "epochs": self.epochs,
        }
        temporary = checkpoint.with_suffix(".part")
        torch.save(state, temporary)
        temporary.replace(checkpoint)

    def _restore(self, checkpoint: Path) -> None:
        state = torch.load(checkpoint, map_location=self.device, weights_only=False)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.generator.set_state(state["generator"].cpu())
        self.epochs = state["epochs"]
