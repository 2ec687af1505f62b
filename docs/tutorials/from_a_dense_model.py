"""
From a dense checkpoint
=======================

You have a trained model already. This page reduces it to a tenth of its weights in four ways, and
says what each way is for.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils import prune

from sparseopt import SparseOptimizer

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16
labels = torch.tensor(digits.target)
train_images, test_images = images[:-360], images[-360:]
train_labels, test_labels = labels[:-360], labels[-360:]
BATCH = 48
EPOCH = -(-len(train_images) // BATCH)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int) -> None:
    torch.manual_seed(1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * EPOCH)
    for _ in range(epochs):
        for batch in torch.randperm(len(train_images)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(train_images[batch]), train_labels[batch]).backward()
            optimizer.step()
            scheduler.step()


def report(what: str, model: nn.Module) -> None:
    with torch.no_grad():
        right = model(test_images).argmax(1) == test_labels
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    share = sum(int((w != 0).sum()) for w in weights) / sum(w.numel() for w in weights)
    print(f"{what:26} {100 * right.float().mean():5.1f} %, {share:.3f} of the weights")


# %%
# The dense checkpoint
# --------------------

torch.manual_seed(0)
model = network()
train(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), epochs=10)
checkpoint = model.state_dict()
report("dense", model)

# %%
# In all examples below the weights are loaded *before* the optimizer is wrapped, because wrapping
# sets dropped weights to zero.


def loaded() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = network()
    model.load_state_dict(checkpoint)
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


# %%
# Prune once and fine-tune
# ------------------------
#
# ``mask="magnitude"`` keeps the largest weights of each layer, as many as its density allows.
# ``method="static"`` never moves this mask.

EPOCHS = 6
model, inner = loaded()
optimizer = SparseOptimizer(inner, model, method="static", density=0.1, mask="magnitude")
report("pruned, not yet trained", model)
train(model, optimizer, EPOCHS)
report("pruned and fine-tuned", model)

# %%
# Prune once and let the masks move
# ---------------------------------
#
# The largest weights of a dense network need not be the best weights of a sparse network. RigL
# starts with them, and then moves the masks.

model, inner = loaded()
optimizer = SparseOptimizer(
    inner, model, method="rigl", density=0.1, mask="magnitude",
    total_steps=EPOCHS * EPOCH, delta_t=15,
)  # fmt: skip
train(model, optimizer, EPOCHS)
report("pruned, then RigL", model)

# %%
# Prune gradually
# ---------------
#
# ``method="pruning"`` starts with all weights and drops the smallest step by step, from all layers
# together.

model, inner = loaded()
optimizer = SparseOptimizer(
    inner, model, method="pruning", density=0.1, total_steps=EPOCHS * EPOCH, delta_t=15
)
train(model, optimizer, EPOCHS)
report("pruned gradually", model)
print([f"{record.density:.2f}" for record in optimizer.history])

# %%
# Of the three ways so far, gradual pruning computes with many weights for the longest time. This
# is its measured cost:

print(f"{optimizer.flops().train_measured_ratio:.2f} of dense training")

# %%
# Zeros from another tool
# -----------------------
#
# Another tool has pruned the model, here ``torch.nn.utils.prune``. With ``mask="nonzero"`` the
# nonzero weights of each layer are live, and ``"static"`` keeps the zeros during fine-tuning. An
# ordinary optimizer would change them.

model, inner = loaded()
linear = [(module, "weight") for module in model if isinstance(module, nn.Linear)]
prune.global_unstructured(linear, prune.L1Unstructured, amount=0.9)
for module, name in linear:
    prune.remove(module, name)
report("pruned by another tool", model)

inner = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
optimizer = SparseOptimizer(inner, model, method="static", mask="nonzero")
train(model, optimizer, EPOCHS)
report("and fine-tuned", model)

# %%
# One run on small data says little about which way is best. :doc:`/methods/index` and
# :doc:`/methods/warm-start` say what is known about this, and what each way costs.
