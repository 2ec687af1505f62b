"""
Masks that move
===============

The first layer of a network for handwritten digits starts with weights at random positions. RigL
moves them to the pixels where digits differ; SET keeps trying all pixels.
"""

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from sparseopt import SparseOptimizer

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16
labels = torch.tensor(digits.target)
STEPS, DELTA_T = 800, 20


def train(method: str) -> tuple[SparseOptimizer, list[torch.Tensor]]:
    """Return the optimizer, and the first layer's mask after every step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4), model,
        method=method, density=0.1, init={}, total_steps=STEPS, delta_t=DELTA_T, seed=0,
    )  # fmt: skip
    masks = [optimizer.masks["0.weight"].clone()]
    for _ in range(STEPS):
        batch = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), labels[batch]).backward()
        optimizer.step()
        masks.append(optimizer.masks["0.weight"].clone())
    return optimizer, masks


runs = {method: train(method) for method in ("rigl", "set")}

# %%
# Which inputs the layer uses
# ---------------------------
#
# The pictures show for each pixel how many of the 128 neurons have a live weight on it. At the
# left and the right edge most images are empty. The gradient there is almost zero, so RigL grows
# other weights.

MOMENTS = (0, 100, 200, 400, 800)
most = max(masks[t].sum(0).max().item() for _, masks in runs.values() for t in MOMENTS)
figure, rows = plt.subplots(2, len(MOMENTS) + 1, figsize=(10, 3.9), layout="constrained")
for row, (method, (_, masks)) in zip(rows, runs.items(), strict=True):
    for axes, moment in zip(row, MOMENTS, strict=False):
        shown = axes.imshow(masks[moment].sum(0).reshape(8, 8), vmin=0, vmax=most, cmap="viridis")
        axes.set_title(f"step {moment}")
    row[-1].imshow(images.mean(0).reshape(8, 8), cmap="gray")
    row[-1].set_title("mean image")
    row[0].set_ylabel(method)
for axes in rows.flat:
    axes.set(xticks=[], yticks=[])
figure.colorbar(shown, ax=rows[:, :-1], label="live weights on the pixel", shrink=0.8)
plt.show()

# %%
# How far they have moved
# -----------------------
#
# Left, the share of the first mask that is still live. Right, the share of all weights of the
# network that were ever live: SET tries many more of them.

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for method, (optimizer, masks) in runs.items():
    overlap = [((mask & masks[0]).sum() / masks[0].sum()).item() for mask in masks]
    left.plot(overlap, label=method)
    records = optimizer.history
    right.plot([r.step for r in records], [r.explored for r in records], ".-", label=method)
left.set(xlabel="step", ylabel="still live of the first mask", ylim=(0, 1.03))
right.set(xlabel="step", ylabel="ever live, of all weights", ylim=(0, None))
for axes in (left, right):
    axes.set_xlim(0, STEPS)
    axes.axvline(0.75 * STEPS, color="gray", ls=":")
left.legend()
plt.show()

# %%
# The dotted line is ``t_end``. After it masks do not move, and a fixed network is trained.
# :doc:`What each update does to a layer <one_update>`.
