"""
Lightning
=========

On this page the ``Trainer`` trains a ``LightningModule`` with a sparse network and resumes from
one of Lightning's own checkpoints. No callback is needed.
"""

import logging
import tempfile
import warnings

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sparseopt import SparseOptimizer

# %%
# To keep this page short, Lightning prints nothing about devices, and the small data set is read
# without worker processes.

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", ".*does not have many workers.*")

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
train_loader = DataLoader(TensorDataset(images[:-360], labels[:-360]), batch_size=48, shuffle=True)
test_loader = DataLoader(TensorDataset(images[-360:], labels[-360:]), batch_size=360)

# %%
# The module
# ----------
#
# Make the wrapper in ``configure_optimizers``, and the scheduler from the wrapper. Lightning
# computes the number of steps from epochs and accumulation.


class Digits(L.LightningModule):
    """A small convolutional network."""

    def __init__(self, density: float = 0.1):
        super().__init__()
        self.density = density
        self.network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        images, labels = batch
        return F.cross_entropy(self(images), labels)

    def test_step(self, batch: list[torch.Tensor], index: int) -> None:
        images, labels = batch
        self.log("accuracy", (self(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> dict:
        steps = self.trainer.estimated_stepping_batches
        optimizer = torch.optim.AdamW(self.parameters(), lr=5e-3)
        optimizer = SparseOptimizer(
            optimizer, self, method="rigl", density=self.density, total_steps=steps, delta_t=30
        )
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }


# %%
# Training
# --------
#
# Checkpoints are Lightning's, one after each epoch.

folder = tempfile.mkdtemp()


def trainer() -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        max_epochs=12,
        callbacks=[ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


L.seed_everything(0, verbose=False)
module = Digits()
first = trainer()
first.fit(module, train_loader)
(found,) = first.test(module, test_loader, verbose=False)
print(f"accuracy {100 * found['accuracy']:.1f} %")

# %%
# Looking inside
# --------------
#
# The wrapper is ``trainer.optimizers[0]``.

print(first.optimizers[0].summary())
print(first.optimizers[0].flops())

# %%
# Resuming
# --------
#
# A new module and a new ``Trainer`` continue from the end of the sixth epoch. Masks, the number of
# steps and the history come from the checkpoint.

resumed, second = Digits(), trainer()
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    # Lightning restores the model, makes the optimizer, and restores the optimizer last. In
    # between, a warning says that the model was sparse before. The checkpoint's masks then replace
    # the new masks, and nothing is lost.
    warnings.filterwarnings("ignore", "the model was sparse before")
    second.fit(resumed, train_loader, ckpt_path=f"{folder}/epoch=5.ckpt")
before, after = (one.optimizers[0] for one in (first, second))
assert after.steps == before.steps
assert [record.step for record in after.history] == [record.step for record in before.history]
print(f"{after.steps} steps, masks moved at {[record.step for record in after.history]}")

# %%
# For more, and for manual optimization, see :doc:`/how-to/frameworks`.
