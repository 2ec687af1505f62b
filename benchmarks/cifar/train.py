"""One run, from its seed to its result, resumable after every step."""

from __future__ import annotations

import hashlib
import io
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cifar.accounting import channels_of
from benchmarks.cifar.batches import Split, Splits
from benchmarks.cifar.config import Protocol
from benchmarks.cifar.grid import RunSpec
from benchmarks.cifar.methods import recipe_of
from benchmarks.cifar.models import build_model
from benchmarks.cifar.optimizers import build_optimizer, build_scheduler, by_channel
from benchmarks.cifar.stopping import Stop, StoppedError
from benchmarks.common.files import write_atomic

# An epoch of a large network can take hours: so much of it at most is lost to a crash.
SECONDS_BETWEEN_CHECKPOINTS = 600.0
STEPS_BETWEEN_DENSITIES = 20


class Progress(NamedTuple):
    """What a progress bar may show while a run goes on."""

    epoch: int
    step: int
    density: float
    validation_accuracy: float | None


class Run:
    """A model in training.

    Everything random follows from the seed: the initial weights and the order of the images are
    the same for all methods, which makes differences between methods paired.
    """

    def __init__(
        self,
        protocol: Protocol,
        spec: RunSpec,
        splits: Splits,
        masks: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.protocol = protocol
        self.spec = spec
        self.splits = splits
        self.epochs = protocol.training.epochs * recipe_of(spec.method).length
        self.steps_per_epoch = math.ceil(len(splits.train) / protocol.training.batch_size)
        self.total_steps = self.steps_per_epoch * self.epochs
        torch.manual_seed(spec.seed)
        self.model = build_model(protocol, spec, splits.num_classes).to(splits.device)
        groups = channels_of(protocol, splits.num_classes) if by_channel(spec) else ()
        self.optimizer = build_optimizer(
            self.model, protocol, spec, self.total_steps, masks, groups
        )
        self.scheduler = build_scheduler(self.optimizer, protocol, spec, self.total_steps)
        self.data_generator = torch.Generator().manual_seed(spec.seed)
        self.curve: list[dict[str, Any]] = []
        self.seconds = 0.0
        # Within an epoch: where its random order began, batches seen, and their summed loss.
        self._epoch_start = self.data_generator.get_state()
        self._batches = 0
        self._loss = torch.zeros((), device=splits.device)
        self._clock = time.perf_counter()

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return len(self.curve)

    @property
    def step(self) -> int:
        """Number of steps made."""
        return self.epoch * self.steps_per_epoch + self._batches

    @property
    def density(self) -> float:
        """Live share of the prunable weights; 1 for the dense methods."""
        return float(getattr(self.optimizer, "density", 1.0))

    def finish(
        self,
        checkpoint: Path,
        show: Callable[[Progress], object] = lambda progress: None,
        stop: Stop | None = None,
    ) -> None:
        """Train the remaining epochs, saving after each and from time to time in between.

        Raises:
            StoppedError: If a stop was requested. The state is saved then.
        """
        self._clock = saved = time.perf_counter()

        def step_done(progress: Progress) -> None:
            nonlocal saved
            show(progress)
            if stop is not None and stop.requested:
                self.save(checkpoint)
                raise StoppedError
            if time.perf_counter() - saved > SECONDS_BETWEEN_CHECKPOINTS:
                self.save(checkpoint)
                saved = time.perf_counter()

        while self.epoch < self.epochs:
            self.train_epoch(step_done)
            self.save(checkpoint)
            saved = time.perf_counter()

    def train_epoch(self, show: Callable[[Progress], object]) -> None:
        """Train on the images that are left of this epoch, then measure the validation accuracy."""
        self.model.train()
        accuracy = self.curve[-1]["validation_accuracy"] if self.epoch else None
        density = self.density
        batch_size = self.protocol.training.batch_size
        batches = self.splits.train.shuffled(batch_size, self.data_generator, skip=self._batches)
        for images, labels in batches:
            # Summed on the device: reading a number each step would make a GPU wait for Python.
            self._loss += self.train_step(images, labels) * len(labels)
            self._batches += 1
            if self._batches % STEPS_BETWEEN_DENSITIES == 0:
                density = self.density
            show(Progress(self.epoch + 1, self.step, density, accuracy))
        mean_loss = float(self._loss) / len(self.splits.train)
        self.curve.append(
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

    def train_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step of training; returns the mean loss, detached."""
        smoothing = self.protocol.training.label_smoothing
        with self._autocast():
            loss = F.cross_entropy(self.model(images), labels, label_smoothing=smoothing)
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

    def save(self, path: Path) -> None:
        """Write the checkpoint from which ``resume`` continues."""
        write_atomic(path, self.checkpoint())

    def checkpoint(self) -> bytes:
        """Everything that the next step depends on."""
        now = time.perf_counter()
        self.seconds += now - self._clock
        self._clock = now
        buffer = io.BytesIO()
        state = {
            **{name: part.state_dict() for name, part in self._parts().items()},
            **random_state(),
            "data_generator": self._epoch_start,
            "progress": {
                "curve": self.curve,
                "seconds": self.seconds,
                "batches": self._batches,
                "loss": float(self._loss),
            },
        }
        torch.save(state, buffer)
        return buffer.getvalue()

    def resume(self, path: Path) -> bool:
        """Continue from a checkpoint, if there is one; say whether there was."""
        if not path.exists():
            return False
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        self._epoch_start = state["data_generator"]
        self.data_generator.set_state(self._epoch_start)
        progress = state["progress"]
        self.curve, self.seconds = progress["curve"], progress["seconds"]
        self._batches = progress["batches"]
        self._loss.fill_(progress["loss"])
        return True

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.splits.device.type, torch.bfloat16, enabled=self.protocol.training.bf16
        )


def random_state() -> dict[str, Any]:
    """The state of torch's global generators."""
    return {
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of everything in the model's state dict, so that two runs can be compared exactly."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
