"""A run with Lightning Fabric: `python -m tests.integration.fabric_worker FOLDER`.

Half-way it saves a checkpoint, and goes on with new objects that load it. What every step did goes
to `FOLDER/fabric.pt`.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import nn

from sparseopt import SparseOptimizer
from tests.integration.frameworks import (
    LR,
    MAX_NORM,
    RECORDED,
    SETTINGS,
    STEPS,
    STEPS_PER_EPOCH,
    Recorder,
)
from tests.support.nets import batch, make

STOP = STEPS // 2


def begin(fabric: L.Fabric, seed: int) -> tuple[nn.Module, Any, Recorder]:
    """Model and optimizer as Fabric returns them, and the record of their steps."""
    plain = make(seed=seed)
    inner = torch.optim.AdamW(plain.parameters(), lr=LR)
    sparse = SparseOptimizer(inner, plain, method="rigl", **{**SETTINGS, "seed": 3 + seed})
    recorder = Recorder(plain, sparse)
    model, optimizer = fabric.setup(plain, sparse)
    return model, optimizer, recorder


def train(fabric: L.Fabric, model: nn.Module, optimizer: Any, start: int, stop: int) -> None:
    for t in range(start, stop):
        inputs, labels = batch(t % STEPS_PER_EPOCH)
        optimizer.zero_grad()
        fabric.backward(F.cross_entropy(model(inputs), labels))
        fabric.clip_gradients(model, optimizer, max_norm=MAX_NORM)
        optimizer.step()


def main(folder: Path) -> None:
    fabric = L.Fabric(accelerator="cpu", devices=1)
    model, optimizer, first = begin(fabric, seed=0)
    train(fabric, model, optimizer, 0, STOP)
    fabric.save(folder / "half-way.ckpt", {"model": model, "optimizer": optimizer})
    model, optimizer, second = begin(fabric, seed=1)
    fabric.load(folder / "half-way.ckpt", {"model": model, "optimizer": optimizer})
    train(fabric, model, optimizer, STOP, STEPS)
    seen = {key: first.seen[key] + second.seen[key] for key in RECORDED}
    torch.save(seen, folder / "fabric.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Lightning's advice.
    warnings.filterwarnings("ignore", module="lightning")
    main(Path(sys.argv[1]))
