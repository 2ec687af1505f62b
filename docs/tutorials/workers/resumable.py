"""Trains a network and saves it after every epoch. Started again, it continues where it stopped.

``python resumable.py FOLDER [LAST_EPOCH]``
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from sparseopt import SparseOptimizer

EPOCHS, BATCH = 6, 64

folder = Path(sys.argv[1])
last_epoch = int(sys.argv[2]) if len(sys.argv) > 2 else EPOCHS
checkpoint = folder / "checkpoint.pt"

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16
labels = torch.tensor(digits.target)
steps = EPOCHS * -(-len(images) // BATCH)

torch.manual_seed(0)
model = nn.Sequential(
    nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 128), nn.ReLU(),
    nn.Linear(128, 10),
)  # fmt: skip
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
optimizer = SparseOptimizer(
    optimizer, model, method="set", density=0.1, total_steps=steps, delta_t=10
)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def save(epoch: int) -> None:
    """Save all that the next step depends on, to a file that is never incomplete."""
    state = {
        "epoch": epoch,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "random": torch.get_rng_state(),
    }
    beside = checkpoint.with_suffix(".tmp")
    torch.save(state, beside)
    beside.replace(checkpoint)


first_epoch = 0
if checkpoint.exists():
    state = torch.load(checkpoint)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    torch.set_rng_state(state["random"])
    first_epoch = state["epoch"]

for epoch in range(first_epoch, last_epoch):
    for batch in torch.randperm(len(images)).split(BATCH):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        scheduler.step()
    save(epoch + 1)
    print(f"epoch {epoch + 1}: loss {loss:.6f}, {len(optimizer.history)} mask updates so far")
