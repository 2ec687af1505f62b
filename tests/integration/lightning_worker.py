"""Trains with Lightning in a process of its own.

`python -m tests.integration.lightning_worker COMMAND FOLDER`, where the command is "start" (with a
checkpoint after every epoch) or "resume" (after the first epoch of what another process saved).
"""

import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from sparseopt import SparseOptimizer
from tests.integration.frameworks import (
    EPOCHS,
    LR,
    MAX_NORM,
    SCALE,
    SETTINGS,
    SIZE,
    STEPS_PER_EPOCH,
    Recorder,
    dataset,
)
from tests.integration.lightning_runs import AUTOMATIC, Run
from tests.integration.resume_worker import outcome
from tests.support.catalogue import build
from tests.support.nets import SmallNet, make


class Classifier(SmallNet, L.LightningModule):
    """Automatic optimization."""

    def __init__(self, *, adamw: Mapping[str, Any], sparse: Mapping[str, Any]):
        super().__init__()
        self.adamw, self.sparse = adamw, sparse

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        return F.cross_entropy(self(inputs).float(), labels)

    def configure_optimizers(self):
        steps = self.trainer.estimated_stepping_batches
        optimizer = torch.optim.AdamW(self.parameters(), **self.adamw)
        optimizer = SparseOptimizer(optimizer, self, total_steps=steps, **self.sparse)
        scheduler = OneCycleLR(optimizer, max_lr=self.adamw["lr"], total_steps=steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


class Pair(L.LightningModule):
    """Manual optimization of two nets by two optimizers."""

    def __init__(self, *, adamw: Mapping[str, Any], sparse: Mapping[str, Any]):
        super().__init__()
        self.automatic_optimization = False
        self.adamw, self.sparse = adamw, sparse
        self.nets = nn.ModuleList([make(seed=0), make(seed=1)])

    def training_step(self, batch, batch_idx):
        inputs, labels = batch
        parts = zip(self.nets, self.optimizers(), self.lr_schedulers(), strict=True)
        for net, optimizer, scheduler in parts:
            with optimizer.toggle_model():
                optimizer.zero_grad()
                self.manual_backward(F.cross_entropy(net(inputs), labels))
                self.clip_gradients(optimizer, gradient_clip_val=MAX_NORM)
                optimizer.step()
                scheduler.step()

    def configure_optimizers(self):
        steps = self.trainer.estimated_stepping_batches
        optimizers = [
            SparseOptimizer(
                torch.optim.AdamW(net.parameters(), **self.adamw),
                net,
                total_steps=steps,
                **self.sparse,
            )
            for net in self.nets
        ]
        schedulers = [
            OneCycleLR(optimizer, max_lr=self.adamw["lr"], total_steps=steps)
            for optimizer in optimizers
        ]
        return optimizers, schedulers


class Overflowing(Classifier):
    """The loss of some batches is infinite."""

    def __init__(self, batches: Collection[int], **settings: Any):
        super().__init__(**settings)
        self.batches = batches

    def training_step(self, batch, batch_idx):
        number = self.trainer.current_epoch * STEPS_PER_EPOCH + batch_idx
        return super().training_step(batch, batch_idx) * (inf if number in self.batches else 1.0)


class ManyClosures(Classifier):
    """An optimizer that evaluates Lightning's closure several times a step."""

    def configure_optimizers(self):
        return SparseOptimizer(
            build("LBFGS", self.parameters()),
            self,
            total_steps=self.trainer.estimated_stepping_batches,
            **self.sparse,
        )


class Observer(L.Callback):
    """Records every step of every net, and the attributes of `self.optimizers()` at the end."""

    def __init__(self, nets: Sequence[nn.Module]):
        self.nets = nets
        self.seen: list[dict[str, Any]] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.recorders = [
            Recorder(net, optimizer)
            for net, optimizer in zip(self.nets, trainer.optimizers, strict=True)
        ]

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        wrapped = pl_module.optimizers()
        for recorder, through in zip(
            self.recorders, wrapped if isinstance(wrapped, list) else [wrapped], strict=True
        ):
            self.seen.append(
                {
                    **recorder.seen,
                    "outcome": outcome(recorder.model, recorder.optimizer),
                    "through Lightning": {
                        "is sparse": isinstance(through, SparseOptimizer),
                        "density": through.density,
                        "live": {layer.name: layer.live for layer in through.layers},
                        "steps": through.steps,
                        "inference_sparse": through.flops().inference_sparse,
                    },
                }
            )


# Resumed runs use the folder of their checkpoints.
warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")


def fit(module: L.LightningModule, run: Run, folder: Path, checkpoint: Path | None) -> list:
    """Train and save after every epoch, or resume; return what was recorded of each net."""
    nets = module.nets if isinstance(module, Pair) else [module]
    observer = Observer(nets)
    precision: dict[str, Any] = {"precision": run.precision}
    if run.precision == "16-mixed":
        # Lightning itself makes this of `precision="16-mixed"` on a GPU; torch has it on the CPU.
        scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
        precision = {"plugins": [MixedPrecision("16-mixed", "cpu", scaler)]}
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        accumulate_grad_batches=run.accumulate,
        gradient_clip_val=run.max_norm,
        callbacks=[observer, ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **precision,
    )
    loader = DataLoader(dataset(STEPS_PER_EPOCH * run.accumulate), batch_size=SIZE)
    trainer.fit(module, loader, ckpt_path=checkpoint)
    return observer.seen


def modules() -> Iterator[tuple[str, L.LightningModule, Run]]:
    sparse = {key: SETTINGS[key] for key in ("density", "delta_t", "seed")}
    for name, run in AUTOMATIC.items():
        settings = {
            "adamw": {"lr": LR, "fused": run.fused},
            "sparse": {**sparse, "method": run.method, "state": run.state},
        }
        module = Overflowing(run.overflows, **settings) if run.overflows else Classifier(**settings)
        module.load_state_dict(make().state_dict())
        yield name, module, run
    yield "pair", Pair(adamw={"lr": LR}, sparse=sparse), Run(max_norm=None)
    module = ManyClosures(adamw={}, sparse=sparse)
    module.load_state_dict(make().state_dict())
    yield "closures", module, Run(max_norm=None)


def main(command: str, folder: Path) -> None:
    for name, module, run in modules():
        checkpoint = folder / name / "epoch=0.ckpt" if command == "resume" else None
        seen = fit(module, run, folder / name, checkpoint)
        torch.save(seen, folder / f"{name}-{command}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], Path(sys.argv[2]))
