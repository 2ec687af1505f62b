"""One run, from its seed to its result, resumable after every step."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cifar.images.batches import Batch, Split, Splits
from benchmarks.cifar.models.networks import build_model
from benchmarks.cifar.protocols.methods import RECIPES
from benchmarks.cifar.protocols.protocol import Protocol
from benchmarks.cifar.protocols.runspec import RunSpec
from benchmarks.cifar.running.building import build_optimizer, build_scheduler, by_channel
from benchmarks.cifar.running.channels import channels_of
from benchmarks.cifar.running.checkpoint import (
    Parts,
    checkpoint_bytes,
    load_checkpoint,
    random_state,
)
from benchmarks.cifar.running.ranks import ALONE, Ranks
from benchmarks.cifar.running.stopping import Stop, StoppedError
from benchmarks.common.files import write_atomic

# An epoch of a large network can take hours: so much of it at most is lost to a crash.
SECONDS_BETWEEN_CHECKPOINTS = 600.0
# Asking all processes whether one was told to stop takes a message: not at every step.
STEPS_BETWEEN_QUESTIONS = 20
# Far apart, so that no two ranks of two seeds get the same dropout.
SEED_OF_RANK = 1_000_003


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
        masks: The final masks of the run that this one builds on, if there is one.
        ranks: The processes that train it together.
    """

    def __init__(
        self,
        protocol: Protocol,
        spec: RunSpec,
        splits: Splits,
        masks: Mapping[str, Tensor] | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.protocol = protocol
        self.spec = spec
        self.splits = splits
        self.ranks = ranks
        self.epochs = protocol.training.epochs * RECIPES[spec.method].length
        self.steps_per_epoch = math.ceil(len(splits.train) / protocol.training.batch_size)
        self.total_steps = self.steps_per_epoch * self.epochs
        torch.manual_seed(spec.seed)
        self.model = build_model(protocol, spec, splits.num_classes).to(splits.device)
        if ranks.processes > 1 and splits.device.type == "cuda":
            # There is none on the CPU, where each process has the statistics of its own part.
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        self._trained = ranks.wrap(self.model, splits.device)
        groups = channels_of(protocol, splits.num_classes) if by_channel(spec) else ()
        self.optimizer = build_optimizer(
            self.model, protocol, spec, self.total_steps, masks, groups
        )
        self.scheduler = build_scheduler(self.optimizer, protocol, spec, self.total_steps)
        self.data_generator = torch.Generator().manual_seed(spec.seed)
        if not ranks.is_first:
            torch.manual_seed(spec.seed + SEED_OF_RANK * ranks.rank)
        self.outcome = Outcome()
        # Within an epoch: where its random order began, batches seen, and their summed loss.
        self._epoch_start = self.data_generator.get_state()
        self._batches = 0
        self._loss = torch.zeros((), device=splits.device)
        self._clock = time.perf_counter()

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.outcome.curve)

    @property
    def step(self) -> int:
        """Number of steps made."""
        return self.epoch * self.steps_per_epoch + self._batches

    @property
    def density(self) -> float:
        """Live share of the prunable weights; 1 for the dense methods."""
        return float(getattr(self.optimizer, "density", 1.0))

    def resume(self, path: Path) -> bool:
        """Continue from a checkpoint, if there is one; say whether there was."""
        if not path.exists():
            return False
        saved = load_checkpoint(path, self._parts(), self.data_generator, self.ranks.rank)
        self.outcome = Outcome(saved["curve"], saved["seconds"])
        self._epoch_start = self.data_generator.get_state()
        self._batches = saved.get("batches", 0)
        self._loss.fill_(saved.get("loss", 0.0))
        return True

    def finish(
        self,
        checkpoint: Path,
        show: Callable[[Progress], None],
        stop: Stop | None = None,
        after_epoch: Callable[[Run], None] | None = None,
    ) -> Outcome:
        """Train the remaining epochs, saving after each, and measure the test accuracy.

        Args:
            checkpoint: File to save to after every epoch, and from time to time in between.
            show: Called after every step.
            stop: Looked at after every step.
            after_epoch: Called with the run after every epoch.

        Raises:
            StoppedError: If a stop was requested. The state is saved then.
        """
        self._clock = saved = time.perf_counter()

        def step_done(progress: Progress) -> None:
            nonlocal saved
            show(progress)
            if self._is_stopped(stop):
                self.save(checkpoint)
                raise StoppedError
            # Clocks of several processes differ, and all have to save at the same step.
            if self.ranks.processes > 1:
                return
            if time.perf_counter() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                self.save(checkpoint)
                saved = time.perf_counter()

        while self.epoch < self.epochs:
            self.train_epoch(step_done)
            self.save(checkpoint)
            saved = time.perf_counter()
            if after_epoch is not None:
                after_epoch(self)
        self.outcome.validation_accuracy = self.outcome.curve[-1]["validation_accuracy"]
        self.outcome.test_accuracy = self.accuracy(self.splits.test)
        return self.outcome

    def save(self, path: Path) -> None:
        """Write the checkpoint from which ``resume`` continues; all processes have to call this."""
        content = self.checkpoint()
        if self.ranks.is_first:
            write_atomic(path, content)

    def checkpoint(self) -> bytes:
        """What ``save`` writes."""
        now = time.perf_counter()
        self.outcome.seconds += now - self._clock
        self._clock = now
        progress = {
            "curve": self.outcome.curve,
            "seconds": self.outcome.seconds,
            "batches": self._batches,
            "loss": float(self._loss),
        }
        states = self.ranks.gather(random_state())
        return checkpoint_bytes(self._parts(), self._epoch_start, states, progress)

    def train_epoch(self, show: Callable[[Progress], None]) -> None:
        """Train on the images that are left of this epoch, then measure the validation accuracy."""
        self.model.train()
        accuracy = self.outcome.curve[-1]["validation_accuracy"] if self.epoch else None
        density = self.density
        batches = self.splits.train.shuffled(
            self.protocol.training.batch_size,
            self.data_generator,
            skip=self._batches,
            share=self.ranks.share,
        )
        for batch in batches:
            # Summed on the device: reading a number each step would make a GPU wait for Python.
            self._loss += self.train_step(batch) * batch.count
            self._batches += 1
            if self._batches % 20 == 0:
                density = self.density
            show(Progress(self.epoch + 1, self.step, density, accuracy))
        mean_loss = float(self.ranks.sum(self._loss)) / len(self.splits.train)
        self.outcome.curve.append(
            {
                "epoch": self.epoch + 1,
                "train_loss": mean_loss if math.isfinite(mean_loss) else None,
                "validation_accuracy": self.accuracy(self.splits.validation),
                "density": self.density,
                "lr": float(self.scheduler.get_last_lr()[0]),
            }
        )
        self._batches = 0
        self._loss.zero_()
        self._epoch_start = self.data_generator.get_state()

    def train_step(self, batch: Batch) -> Tensor:
        """One step of training; returns the mean loss of this process's part, detached."""
        with self._autocast():
            loss = F.cross_entropy(
                self._trained(batch.images),
                batch.labels,
                label_smoothing=self.protocol.training.label_smoothing,
            )
        self.optimizer.zero_grad()
        if self.ranks.processes == 1:
            loss.backward()
        else:
            # The mean over processes is to be the mean over images, also where parts differ.
            (loss * (batch.count / batch.whole * self.ranks.processes)).backward()
        self.optimizer.step()
        self.scheduler.step()
        return loss.detach()

    @torch.no_grad()
    def accuracy(self, split: Split) -> float:
        """Share of the split's images that the model classifies correctly."""
        self.model.eval()
        self.ranks.copy_from_first(self.model.buffers())
        correct = torch.zeros((), dtype=torch.int64, device=self.splits.device)
        batches = split.in_order(self.protocol.training.eval_batch_size)
        for number, (images, labels) in enumerate(batches):
            if number % self.ranks.processes == self.ranks.rank:
                with self._autocast():
                    correct += (self.model(images).argmax(1) == labels).sum()
        return int(self.ranks.sum(correct)) / len(split)

    def _is_stopped(self, stop: Stop | None) -> bool:
        if stop is None:
            return False
        if self.ranks.processes > 1 and self.step % STEPS_BETWEEN_QUESTIONS:
            return False
        return self.ranks.any(stop.requested, self.splits.device)

    def _parts(self) -> Parts:
        return Parts(self.model, self.optimizer, self.scheduler)

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
