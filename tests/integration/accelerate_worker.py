"""Trains with Accelerate, in a process of its own or as one of several ranks.

`python -m tests.integration.accelerate_worker COMMAND FOLDER`, where the command is "start" (and
save on the way) or "resume" (what another process saved).
"""

import sys
from collections.abc import Iterator
from math import nan
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from sparseopt import SparseOptimizer
from tests.integration.accelerate_runs import (
    ONE_PROCESS,
    SAVED_AT,
    SEED_OF_RANK_ZERO,
    TWO_RANKS,
    Run,
)
from tests.integration.frameworks import (
    EPOCHS,
    LR,
    MAX_NORM,
    SCALE,
    SETTINGS,
    SIZE,
    STEPS,
    STEPS_PER_EPOCH,
    Recorder,
    dataset,
)
from tests.integration.resume_worker import outcome
from tests.support.nets import make

SPARSE = {key: SETTINGS[key] for key in ("density", "delta_t", "seed")}


def prepare(accelerator, model, loader, steps, **settings):
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    optimizer = SparseOptimizer(optimizer, model, total_steps=steps, **settings)
    # Accelerate steps a scheduler once for each process.
    scheduler = OneCycleLR(optimizer, max_lr=LR, total_steps=steps * accelerator.num_processes)
    return accelerator.prepare(model, optimizer, scheduler, loader)


def train(accelerator, model, optimizer, scheduler, loader):
    for inputs, labels in loader:
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(inputs), labels)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), MAX_NORM)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


class Training:
    """A run from its start, or from a folder, to its end."""

    def __init__(self, run: Run):
        self.run = run
        self.accelerator = accelerator_for(run)
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        torch.manual_seed(SEED_OF_RANK_ZERO + rank)
        # DDP spreads the weights of rank 0; FSDP2 takes each rank's part from that rank.
        self.plain_model = make(seed=0 if run.fsdp else rank, dtype=run.dtype)
        loader = DataLoader(dataset(STEPS_PER_EPOCH * run.accumulate * ranks), batch_size=SIZE)
        self.prepared = prepare(
            self.accelerator,
            self.plain_model,
            loader,
            STEPS,
            **{**SPARSE, "method": run.method, "seed": run.seed},
        )
        self.optimizer: SparseOptimizer = self.prepared[1].optimizer
        self.recorder = Recorder(self.plain_model, self.optimizer)
        self.skipped: list[bool] = []

    def start(self, folder: Path) -> dict[str, Any]:
        """Train, saving on the way."""
        return self._train(folder)

    def resume(self, folder: Path) -> dict[str, Any]:
        """Resume from the checkpoint."""
        self.accelerator.load_state(folder)
        return self._train(done=SAVED_AT + len(self.run.overflows))

    def _train(self, save_to: Path | None = None, *, done: int = 0) -> dict[str, Any]:
        *parts, loader = self.prepared
        first, begun = divmod(done, STEPS_PER_EPOCH)
        for epoch in range(first, EPOCHS):
            skip = begun * self.run.accumulate if epoch == first else 0
            rest = self.accelerator.skip_first_batches(loader, skip)
            train(self.accelerator, *parts, self._watched(rest, epoch, save_to))
        seen = {
            **self.recorder.seen,
            "skipped": self.skipped,
            "history": [vars(record) for record in self.optimizer.history],
        }
        if not self.run.fsdp:
            seen["inference_sparse"] = self.optimizer.flops().inference_sparse
            seen["outcome"] = outcome(self.plain_model, self.optimizer)
        return seen

    def _watched(self, loader: DataLoader, epoch: int, save_to: Path | None) -> Iterator[Any]:
        """The batches. After each step, note whether it was skipped, and save when it is time."""
        for number, (inputs, labels) in enumerate(loader):
            place = epoch * STEPS_PER_EPOCH * self.run.accumulate + number
            factor = nan if place in self.run.overflows else 1.0
            yield inputs.to(self.run.dtype) * factor, labels
            if self.accelerator.sync_gradients:
                self.skipped.append(self.accelerator.optimizer_step_was_skipped)
                if save_to is not None and self.optimizer.steps == SAVED_AT:
                    self.accelerator.save_state(save_to)


def accelerator_for(run: Run) -> Accelerator:
    AcceleratorState._reset_state()
    GradientState._reset_state()
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="size_based_wrap", min_num_params=500
    )
    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_steps=run.accumulate,
        mixed_precision=run.precision,
        fsdp_plugin=plugin if run.fsdp else None,
    )
    if run.fsdp:
        # Accelerate ignores the plugin on the CPU, although its functions work there.
        kind = {"distributed_type": DistributedType.FSDP}
        PartialState._shared_state.update(kind)
        AcceleratorState._shared_state.update(kind, fsdp_plugin=plugin)
    if run.precision == "fp16":
        # Accelerate itself makes this on a GPU; torch has it on the CPU.
        accelerator.native_amp = True
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    return accelerator


def main(command: str, folder: Path) -> None:
    state = PartialState(cpu=True)
    for name, run in (ONE_PROCESS if state.num_processes == 1 else TWO_RANKS).items():
        training = Training(run)
        seen = getattr(training, command)(folder / name)
        torch.save(seen, folder / f"{name}-{command}-{state.process_index}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
