"""One run, from its seed to its result, resumable after every epoch."""

from __future__ import annotations

import hashlib
import io
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from tqdm import tqdm

from benchmarks.cifar.accounting import channels_of
from benchmarks.cifar.batches import Split, Splits, splits_for
from benchmarks.cifar.config import Protocol
from benchmarks.cifar.data import noise
from benchmarks.cifar.graphs import CapturedPasses
from benchmarks.cifar.grid import RunSpec
from benchmarks.cifar.methods import method_with, recipe_of
from benchmarks.cifar.models import build_model
from benchmarks.common.files import write_atomic
from sparseopt import RigLStruct, SparseOptimizer, SpeedUp, speed_up

# In a log file, which is not a terminal, a line every half minute is enough.
LOG_INTERVAL = 30.0


class Run:
    """A model in training.

    Everything random follows from the seed: the initial weights and the order of the images are
    the same for all methods, which makes differences between methods paired.

    Args:
        protocol: The protocol, which all runs share.
        spec: The settings of this run.
        splits: The data, on the training device.
        masks: The masks to start with; None draws them.
        cuda_graphs: Replay the passes of full batches as a CUDA graph.
    """

    def __init__(
        self,
        protocol: Protocol,
        spec: RunSpec,
        splits: Splits,
        masks: Mapping[str, Tensor] | None = None,
        *,
        cuda_graphs: bool = False,
    ) -> None:
        self.protocol = protocol
        self.spec = spec
        self.splits = splits
        self.epochs = protocol.training.epochs * recipe_of(spec.method).length
        self.steps_per_epoch = math.ceil(len(splits.train) / protocol.training.batch_size)
        self.total_steps = self.steps_per_epoch * self.epochs
        torch.manual_seed(spec.seed)
        self.model = build_model(protocol, spec).to(splits.device)
        self.optimizer = build_optimizer(self.model, protocol, spec, self.total_steps, masks)
        self.scheduler = build_scheduler(self.optimizer, protocol, spec, self.total_steps)
        self.data_generator = torch.Generator().manual_seed(spec.seed)
        self.speed_up: SpeedUp | None = None
        self._start_speed_up(None)
        self._cuda_graphs = cuda_graphs
        self._captured: CapturedPasses | None = None
        self.curve: list[dict[str, Any]] = []
        self.seconds = 0.0
        # By epoch, because other work on the machine lengthens the CPU time of some epochs only.
        self.cpu_seconds: list[float] = []

    @property
    def step(self) -> int:
        """Number of steps in finished epochs."""
        return len(self.curve) * self.steps_per_epoch

    @property
    def density(self) -> float:
        """Live share of the prunable weights; 1 for the dense methods."""
        return float(getattr(self.optimizer, "density", 1.0))

    def finish(self, checkpoint: Path, title: str | None = None) -> None:
        """Train the remaining epochs, saving after each.

        Args:
            checkpoint: Where the state is saved.
            title: The title of the progress bar; None shows no bar.
        """
        with tqdm(
            desc=title,
            total=self.total_steps,
            initial=self.step,
            leave=False,
            disable=title is None,
            mininterval=0.5 if sys.stderr.isatty() else LOG_INTERVAL,
            unit="step",
            dynamic_ncols=True,
        ) as bar:
            while len(self.curve) < self.epochs:
                self.train_epoch(bar)
                write_atomic(checkpoint, self.checkpoint())
                accuracy = self.curve[-1]["validation_accuracy"]
                bar.set_postfix_str(f"val {accuracy:.2%}, live {self.density:.3f}", refresh=False)

    def train_epoch(self, bar: tqdm[Any] | None = None) -> None:
        """Train on all images once, then measure the validation accuracy."""
        begun, cpu_begun = time.perf_counter(), time.process_time()
        self.model.train()
        total = torch.zeros((), device=self.splits.device)
        batch_size = self.protocol.training.batch_size
        for images, labels in self.splits.train.shuffled(batch_size, self.data_generator):
            # The sum stays on the device: reading a number in each step would synchronise a GPU.
            total += self.train_step(images, labels) * len(labels)
            if bar is not None:
                bar.update()
        self.cpu_seconds.append(time.process_time() - cpu_begun)
        mean_loss = float(total) / len(self.splits.train)
        self.curve.append(
            {
                "epoch": len(self.curve) + 1,
                "train_loss": mean_loss if math.isfinite(mean_loss) else None,
                "validation_accuracy": self.accuracy(self.splits.validation),
                "density": self.density,
                "lr": float(self.scheduler.get_last_lr()[0]),
            }
        )
        self.seconds += time.perf_counter() - begun

    def train_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step of training; returns the mean loss, detached."""
        loss = self._passes(images, labels)
        self.optimizer.step()
        self.scheduler.step()
        return loss.detach()

    @torch.no_grad()
    def accuracy(self, split: Split) -> float:
        """The share of images that are classified correctly."""
        self.model.eval()
        correct = torch.zeros((), dtype=torch.int64, device=self.splits.device)
        for images, labels in split.in_order(self.protocol.training.eval_batch_size):
            with self._autocast():
                correct += (self.model(images).argmax(1) == labels).sum()
        return int(correct) / len(split)

    def checkpoint(self) -> bytes:
        """The state that the next epoch depends on."""
        buffer = io.BytesIO()
        state = {
            **{name: part.state_dict() for name, part in self._parts().items()},
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "data_generator": self.data_generator.get_state(),
            "plan": None if self.speed_up is None else self.speed_up.plan,
            "progress": {
                "curve": self.curve,
                "seconds": self.seconds,
                "cpu_seconds": self.cpu_seconds,
            },
        }
        torch.save(state, buffer)
        return buffer.getvalue()

    def resume(self, path: Path) -> bool:
        """Continue from a checkpoint, if it exists; return whether it does."""
        if not path.exists():
            return False
        state = torch.load(path, map_location="cpu", weights_only=True)
        # A plan is not measured again, because another plan would give other bits. An empty plan is
        # measured again, because the network may have been too dense when it was made.
        self._start_speed_up(state["plan"] or None)
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        torch.set_rng_state(state["torch_rng"])
        if state["cuda_rng"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        self.data_generator.set_state(state["data_generator"])
        for name, value in state["progress"].items():
            setattr(self, name, value)
        return True

    def _passes(self, images: Tensor, labels: Tensor) -> Tensor:
        """Forward and backward pass: the loss, with the gradients set."""
        if self._cuda_graphs and len(images) == self.protocol.training.batch_size:
            if self._captured is None:
                self._captured = CapturedPasses(
                    self.model, self.optimizer, self._loss, images, labels
                )
            return self._captured(images, labels)
        loss = self._loss(images, labels)
        self.optimizer.zero_grad()
        loss.backward()
        return loss

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        smoothing = self.protocol.training.label_smoothing
        with self._autocast():
            return F.cross_entropy(self.model(images), labels, label_smoothing=smoothing)

    def _start_speed_up(self, plan: Mapping[str, Any] | None) -> None:
        if self.speed_up is not None:
            self.speed_up.undo()
        if self.protocol.training.speed_up and isinstance(self.optimizer, SparseOptimizer):
            self.speed_up = speed_up(self.model, self.optimizer, plan=plan)

    def _parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.splits.device.type, torch.bfloat16, enabled=self.protocol.training.bf16
        )


def run_on_noise(protocol: Protocol, spec: RunSpec, device: torch.device) -> Run:
    """A run on a batch of noise, to measure the time of its steps."""
    # Enough for a batch and one validation image, for any validation fraction.
    fraction = protocol.training.validation_fraction
    images = math.ceil((protocol.training.batch_size + 1) / min(fraction, 1.0 - fraction))
    run = Run(protocol, spec, splits_for(protocol, noise(images, protocol.classes), device))
    run.model.train()
    return run


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of the complete state dict of a model, to compare two runs exactly."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def build_optimizer(
    model: nn.Module,
    protocol: Protocol,
    spec: RunSpec,
    total_steps: int,
    masks: Mapping[str, Tensor] | None = None,
) -> Optimizer:
    """SGD, wrapped by ``SparseOptimizer`` if the run's method is sparse."""
    config, sparsity = protocol.optimizer, protocol.sparsity
    weights = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    inner = torch.optim.SGD(
        [
            {"params": weights, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=spec.lr or config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
    )
    name, settings = recipe_of(spec.method).optimizer, dict(spec.settings)
    if name is None:
        return inner
    assert spec.density is not None
    assert spec.init is not None
    method = method_with(spec.method, settings)
    if name == RigLStruct.name:
        method = RigLStruct(groups=channels_of(protocol), **settings)
    return SparseOptimizer(
        inner,
        model,
        method=method,
        density=spec.density,
        init=spec.init,
        mask="random" if masks is None else masks,
        total_steps=total_steps,
        t_end=int(sparsity.t_end_fraction * total_steps),
        delta_t=sparsity.delta_t if spec.delta_t is None else spec.delta_t,
        alpha=sparsity.alpha if spec.alpha is None else spec.alpha,
        seed=spec.seed,
    )


def build_scheduler(
    optimizer: Optimizer, protocol: Protocol, spec: RunSpec, total_steps: int
) -> LRScheduler:
    """The learning-rate schedule; step it once after every training step."""
    config = protocol.schedule
    if config.kind == "one-cycle":
        assert config.warmup_fraction is not None
        return OneCycleLR(
            optimizer,
            max_lr=spec.lr or protocol.optimizer.lr,
            total_steps=total_steps,
            pct_start=config.warmup_fraction,
            cycle_momentum=False,
        )
    assert config.step_size is not None
    assert config.gamma is not None
    step_size, gamma = config.step_size * recipe_of(spec.method).length, config.gamma
    warmup = config.warmup_steps
    if spec.method == "pruning":
        warmup = max(warmup, config.pruning_warmup_steps)

    def factor(step: int) -> float:
        """A linear rise, then a factor ``gamma`` after every interval."""
        return (step + 1) / warmup if step < warmup else gamma ** ((step - warmup) // step_size)

    return LambdaLR(optimizer, factor)
