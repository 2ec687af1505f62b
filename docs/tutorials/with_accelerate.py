"""
Accelerate
==========

On this page a loop that was written for Accelerate trains a sparse network, with accumulated
gradients and clipping. Then its saved state is loaded again.
"""

import tempfile

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sparseopt import SparseOptimizer

EPOCHS, BATCH, ACCUMULATE = 12, 24, 2

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16
labels = torch.tensor(digits.target)
loader = DataLoader(TensorDataset(images[:-360], labels[:-360]), batch_size=BATCH, shuffle=True)

# %%
# The order
# ---------
#
# Make the ``Accelerator`` first, because it starts the process group through which ranks agree on
# masks. Then make the optimizer, the wrapper and the scheduler, and then call ``prepare()``. Steps
# are steps of the optimizer: with two micro-batches to a step there are half as many steps as
# batches.

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
steps = EPOCHS * -(-len(loader) // ACCUMULATE)


def prepared() -> tuple:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    optimizer = SparseOptimizer(
        optimizer, model, method="rigl", density=0.1, total_steps=steps, delta_t=30
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=5e-3, total_steps=steps * accelerator.num_processes
    )
    return accelerator.prepare(model, optimizer, scheduler, loader)


# %%
# The loop
# --------
#
# The loop comes from Accelerate's documentation.

model, optimizer, scheduler, batches = prepared()
for epoch in range(EPOCHS):
    for inputs, targets in batches:
        with accelerator.accumulate(model):
            loss = F.cross_entropy(model(inputs), targets)
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    if epoch % 3 == 2:
        print(f"epoch {epoch + 1}: loss {loss:.3f}")

# %%
# Looking inside
# --------------
#
# ``prepare()`` has wrapped our wrapper. The ``.optimizer`` of the result is ours.

sparse = optimizer.optimizer
assert sparse.steps == steps
print(sparse.summary())
with torch.no_grad():
    right = model(images[-360:]).argmax(1) == labels[-360:]
print(f"accuracy {100 * right.float().mean():.1f} %, {sparse.steps} steps, masks moved at "
      f"{[record.step for record in sparse.history]}")  # fmt: skip

# %%
# Saving and loading
# ------------------
#
# ``save_state`` and ``load_state`` include the masks. Here the second half stands for a new
# process: it makes everything again, with other random masks, and loads.

folder = tempfile.mkdtemp()
accelerator.save_state(folder)

accelerator.free_memory()
new_model, new_optimizer, _, _ = prepared()
accelerator.load_state(folder)
for name, mask in sparse.masks.items():
    assert torch.equal(mask, new_optimizer.optimizer.masks[name])
    assert torch.equal(model.state_dict()[name], new_model.state_dict()[name])
print(f"masks and weights are the same, and the step is {new_optimizer.optimizer.steps}")

# %%
# For FSDP2 with Accelerate, and for fp16, see :doc:`/how-to/frameworks`.
