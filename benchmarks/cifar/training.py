"""One run, from its seed to its result, resumable after every epoch."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cifar.batches import Split
from benchmarks.cifar.building import build_model, build_optimizer, build_scheduler
from benchmarks.cifar.checkpoint import load_checkpoint, save_checkpoint
from benchmarks.cifar.protocol import Protocol
from benchmarks.cifar.runspec import RunSpec


@dataclass(frozen=True)
class Splits:
    """The data of all runs, on the training device."""

    train: Split
    validation: Split
    test: Split
    num_classes: int

    @property
    def device(self) -> torch.device:
        """Where the images are, and so where the training happens."""
        return self.train.labels.device


@dataclass
class Progress:
    """What a progress bar may show while a run goes on."""

    epoch: int
    step: int
    density: float
    validation_accuracy: float | None


@dataclass
class Outcome:
    """What a finished run hands to the results file."""

    curve: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    validation_accuracy: float = math.nan
    test_accuracy: float = math.nan


class Run:
    """A model in training.

    Everything random follows from the seed: the initial weights and the order of the images are
    the same for all methods, which makes differences between methods paired.

    Args:
        protocol: What all runs share.
        spec: What this one trains.
        splits: The images.
    """

    def __init__(self, protocol: Protocol, spec: RunSpec, splits: Splits) -> None:
        self.protocol = protocol
        self.spec = spec
        self.splits = splits
        self.steps_per_epoch = math.ceil(len(splits.train) / protocol.training.batch_size)
        self.total_steps = self.steps_per_epoch * protocol.training.epochs
        torch.manual_seed(spec.seed)
        self.model = build_model(protocol, spec, splits.num_classes).to(splits.device)
        self.optimizer = build_optimizer(self.model, protocol, spec, self.total_steps)
        self.scheduler = build_scheduler(self.optimizer, protocol, spec, self.total_steps)
        self.data_generator = torch.Generator().manual_seed(spec.seed)
        self.outcome = Outcome()

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.outcome.curve)

    @property
    def density(self) -> float:
        """Live share of the prunable weights; 1 for the dense methods."""
        return float(getattr(self.optimizer, "density", 1.0))

    def resume(self, path: Path) -> bool:
        """Continue from a checkpoint, if there is one; say whether there was."""
        if not path.exists():
            return False
        saved = load_checkpoint(
            path, self.model, self.optimizer, self.scheduler, self.data_generator
        )
        self.outcome = Outcome(saved["curve"], saved["seconds"])
        return True

    def finish(self, checkpoint: Path, show: Callable[[Progress], None]) -> Outcome:
        """Train the remaining epochs, saving after each, and measure the test accuracy.

        Args:
            checkpoint: File to save to after every epoch.
            show: Called after every step.
        """
        while self.epoch < self.protocol.training.epochs:
            start = time.perf_counter()
            self.train_epoch(show)
            self.outcome.seconds += time.perf_counter() - start
            self.save(checkpoint)
        self.outcome.validation_accuracy = self.outcome.curve[-1]["validation_accuracy"]
        self.outcome.test_accuracy = self.accuracy(self.splits.test)
        return self.outcome

    def save(self, path: Path) -> None:
        """Write the checkpoint from which ``resume`` continues."""
        progress = {"curve": self.outcome.curve, "seconds": self.outcome.seconds}
        save_checkpoint(
            path, self.model, self.optimizer, self.scheduler, self.data_generator, progress
        )

    def train_epoch(self, show: Callable[[Progress], None]) -> None:
        """Train on every training image once, then measure the validation accuracy."""
        self.model.train()
        total_loss = torch.zeros((), device=self.splits.device)
        done = self.epoch * self.steps_per_epoch
        accuracy = self.outcome.curve[-1]["validation_accuracy"] if self.epoch else None
        density = self.density
        batches = self.splits.train.shuffled(self.protocol.training.batch_size, self.data_generator)
        for step, (images, labels) in enumerate(batches, start=1):
            # Summed on the device: reading a number each step would make a GPU wait for Python.
            total_loss += self.train_step(images, labels) * len(labels)
            if step % 20 == 0:
                density = self.density
            show(Progress(self.epoch + 1, done + step, density, accuracy))
        mean_loss = float(total_loss) / len(self.splits.train)
        self.outcome.curve.append(
            {
                "epoch": self.epoch + 1,
                "train_loss": mean_loss if math.isfinite(mean_loss) else None,
                "validation_accuracy": self.accuracy(self.splits.validation),
                "density": self.density,
                "lr": float(self.scheduler.get_last_lr()[0]),
            }
        )

    def train_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step of training; returns the batch's mean loss, detached."""
        with self._autocast():
            loss = F.cross_entropy(self.model(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.scheduler.step()
        return loss.detach()

    @torch.no_grad()
    def accuracy(self, split: Split) -> float:
        """Share of the split's images that the model classifies correctly."""
        self.model.eval()
        correct = torch.zeros((), dtype=torch.int64, device=self.splits.device)
        for images, labels in split.in_order(self.protocol.training.eval_batch_size):
            with self._autocast():
                correct += (self.model(images).argmax(1) == labels).sum()
        return int(correct) / len(split)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.splits.device.type, torch.bfloat16, enabled=self.protocol.training.bf16
        )


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of everything in the model's state dict, so that two runs can be compared exactly."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
