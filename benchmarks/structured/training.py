"""One network in training for the table of accuracy."""

from __future__ import annotations

import argparse
import json
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.common.environment import describe_environment
from benchmarks.structured.data import Images
from benchmarks.structured.models import ViT, shape_of
from benchmarks.structured.protocol import (
    OPTIONS,
    WEIGHTS_MOVE,
    asked_settings,
    data_of,
    shape_at_first,
)
from benchmarks.structured.records import Record, Settings, refuse_other
from sparseopt import CompactedTraining, RigLStruct, SparseOptimizer, SRigL, compact, speed_up

WARM_UP = 0.1
LABEL_SMOOTHING = 0.1


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
            "options": {name: getattr(self.options, name) for name in OPTIONS},
            "data": data_of(self.options),
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

    def _settings(self) -> Settings:
        """What a saved state must have been made with so that this run can continue from it."""
        return {**asked_settings(self.options), "epochs": self.total_epochs}

    def _save(self, checkpoint: Path) -> None:
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "settings": self._settings(),
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
        refuse_other(checkpoint, state.get("settings", {}), self._settings())
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.generator.set_state(state["generator"].cpu())
        self.epochs = state["epochs"]
