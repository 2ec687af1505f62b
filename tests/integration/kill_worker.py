"""A run that may be killed at any moment and goes on from its last checkpoint."""

import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sparseopt import SparseOptimizer
from tests.support.catalogue import build
from tests.support.looking import per_weight_state
from tests.support.nets import CLASSES, batch
from tests.support.wrapping import settings_with

STEPS, SAVE_EVERY = 90, 3
BATCHES, BATCH_SIZE = 7, 8
SETTINGS = settings_with(total_steps=STEPS, delta_t=4)


def save(checkpoint: dict[str, Any], path: Path) -> None:
    """Replace the file at ``path``; a process that dies here leaves the old or the new file."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())  # the bytes are on the disk before the name points at them
    temporary.replace(path)


class Journal:
    """The events of a run, line by line, in a file that outlives the process."""

    def __init__(self, path: Path):
        self.file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, event: str, step: int) -> None:
        os.write(self.file, f"{event} {step}\n".encode())


class Training:
    """Everything that the next step depends on."""

    def __init__(self, method: str, name: str):
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Flatten(),
            nn.Linear(108, 256),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(256, 256),
            nn.ReLU(),
            nn.Linear(256, CLASSES),
        )
        inner = build(name, self.model.parameters())
        self.optimizer = SparseOptimizer(inner, self.model, method=method, **SETTINGS)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, STEPS)
        self.shuffling = torch.Generator().manual_seed(1)
        self.order: list[int] = []

    def step(self) -> None:
        """One step on the next batch; when all batches are used, their order is drawn again."""
        if not self.order:
            self.order = torch.randperm(BATCHES, generator=self.shuffling).tolist()
        x, y = batch(self.order.pop(), size=BATCH_SIZE)
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(x), y).backward()
        self.optimizer.step()
        self.scheduler.step()

    def checkpoint(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random": torch.get_rng_state(),
            "shuffling": self.shuffling.get_state(),
            "order": self.order,
            "step": self.optimizer.steps,
        }

    def load(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scheduler.load_state_dict(saved["scheduler"])
        torch.set_rng_state(saved["random"])
        self.shuffling.set_state(saved["shuffling"])
        self.order = saved["order"]

    def outcome(self) -> dict[str, Any]:
        """The values in which two equal runs agree to the last bit."""
        layers = self.optimizer.layers
        return {
            "weights": dict(self.model.named_parameters()),
            "masks": self.optimizer.masks,
            "state": {
                f"{layer.name} {key}": torch.from_numpy(value)
                for layer in layers
                for key, value in per_weight_state(self.optimizer, layer.weight, layer.mask).items()
            },
            "random": {"torch": torch.get_rng_state(), "shuffling": self.shuffling.get_state()},
            "history": [vars(record) for record in self.optimizer.history],
            "lr": self.scheduler.get_last_lr(),
            "steps": self.optimizer.steps,
        }


def train(folder: Path, method: str, name: str) -> None:
    """Resume from the checkpoint in the folder, if there is one, and train to the last step."""
    torch.set_num_threads(1)
    journal, path = Journal(folder / "journal"), folder / "checkpoint.pt"
    training = Training(method, name)
    if path.exists():
        training.load(torch.load(path))
    optimizer = training.optimizer
    journal.write("begun", optimizer.steps)
    while optimizer.steps < STEPS:
        training.step()
        journal.write("step", optimizer.steps)
        if optimizer.steps % SAVE_EVERY == 0:
            journal.write("saving", optimizer.steps)
            save(training.checkpoint(), path)
            journal.write("saved", optimizer.steps)
    save(training.outcome(), folder / "outcome.pt")
