"""Two `fit()`s with Lightning, one after the other, in a process of its own.

`python -m tests.integration.lightning_fits FOLDER` writes weights and masks after each, and what
the same two phases give in plain loops, to `FOLDER/fits.pt`.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader

from sparseopt import SparseOptimizer
from tests.support.nets import SmallNet, batch, make

BATCHES = 12
PHASES = ({"mask": "random", "seed": 1}, {"mask": "nonzero", "seed": 2})


def optimizer_of(model: torch.nn.Module, **settings: Any) -> SparseOptimizer:
    inner = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return SparseOptimizer(
        inner, model, method="rigl", density=0.2, total_steps=BATCHES, delta_t=4, **settings
    )


class Net(SmallNet, L.LightningModule):
    """Makes an optimizer for every `fit()`, and keeps them all."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[SparseOptimizer] = []

    def training_step(self, item, index):
        inputs, labels = item
        return F.cross_entropy(self(inputs), labels)

    def configure_optimizers(self):
        self.made.append(optimizer_of(self, **PHASES[len(self.made)]))
        return self.made[-1]


def seen(model: torch.nn.Module, optimizer: SparseOptimizer) -> dict[str, Any]:
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    return {"weights": weights, "masks": dict(optimizer.masks), "updates": len(optimizer.history)}


def with_lightning(folder: Path) -> list[dict[str, Any]]:
    model = make(Net)
    trainers, found = [], []
    for _ in PHASES:
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        data = [batch(index) for index in range(BATCHES)]
        trainer.fit(model, DataLoader(data, batch_size=None))
        trainers.append(trainer)
        found.append(seen(model, model.made[-1]))
    return found


def plain() -> list[dict[str, Any]]:
    model, found = make(Net), []
    for settings in PHASES:
        optimizer = optimizer_of(model, **settings)
        for index in range(BATCHES):
            inputs, labels = batch(index)
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
        found.append(seen(model, optimizer))
        optimizer.detach()
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Lightning's advice about loaders and loggers.
    warnings.filterwarnings("ignore", module="lightning")
    target = Path(sys.argv[1])
    torch.save({"lightning": with_lightning(target), "plain": plain()}, target / "fits.pt")
