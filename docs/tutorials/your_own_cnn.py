"""
Your own CNN
============

You have a network of your own and a training loop that works. On this page you train it twice with
the same loop, dense and with a tenth of its weights, and compare accuracy and cost.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from sparseopt import SparseOptimizer

# %%
# The data
# --------
#
# The data are handwritten digits that come with scikit-learn: 1,797 images of 8x8 pixels. The last
# 360 images are for testing.

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
train_images, test_images = images[:-360], images[-360:]
train_labels, test_labels = labels[:-360], labels[-360:]

# %%
# The network
# -----------
#
# It is an ordinary network. It needs no change for sparse training.


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(inner)))


def network() -> nn.Module:
    """The same first weights every time."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        Residual(32), nn.MaxPool2d(2),
        Residual(32), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 10),
    )  # fmt: skip


# %%
# The loop
# --------
#
# It takes any optimizer. It needs no masks, no callback and no second loss.

EPOCHS, BATCH = 8, 48
STEPS = EPOCHS * -(-len(train_images) // BATCH)


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Return the accuracy on the test images, in percent."""
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=STEPS)
    torch.manual_seed(1)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(train_images)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(train_images[batch]), train_labels[batch]).backward()
            optimizer.step()
            scheduler.step()
    model.eval()
    with torch.no_grad():
        found = model(test_images).argmax(1)
    return 100 * (found == test_labels).float().mean().item()


# %%
# Dense, for comparison
# ---------------------

dense = network()
accuracy = train(dense, torch.optim.SGD(dense.parameters(), lr=0.1, momentum=0.9))
print(f"dense: {accuracy:.1f} % of the test images")

# %%
# Sparse, with two lines
# ----------------------
#
# Wrap the optimizer, and give the result to the same function. ``delta_t`` is the number of steps
# between updates of the masks; its default of 100 is for longer training than this.

model = network()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
optimizer = SparseOptimizer(
    optimizer, model, method="rigl", density=0.1, total_steps=STEPS, delta_t=15
)
accuracy = train(model, optimizer)
print(f"a tenth of the weights: {accuracy:.1f} % of the test images")

# %%
# What is live
# ------------
#
# The table has one row for each weight that can be sparse. The densities differ because
# ``init="erk"``, the default, gives small layers more: see :doc:`the picture
# </generated/gallery/densities_by_layer>`. BatchNorm and biases are not in the table, because they
# are always dense.

print(optimizer.summary())

# %%
# The model's weights contain the zeros, so everything that reads the model later sees them too:

weight = model[3].conv1.weight
print(f"{(weight != 0).sum()} of {weight.numel()} weights of the first block's first convolution")

# %%
# What it costs
# -------------
#
# The cost by layer, in floating-point operations per image. These are operations, not seconds:
# :doc:`what they mean, and what they don't </explanation/flops>`.

print(optimizer.flops())

# %%
# A layer that you want dense
# ---------------------------
#
# ERK has made the first layer dense. To be sure that a layer is dense, put it into a param group
# with ``density=False``; a group may also have a density of its own. :doc:`Which layers should be
# dense </how-to/dense-layers>`?

model = network()
first, *rest = model.parameters()
optimizer = torch.optim.SGD([{"params": rest}, {"params": [first], "density": False}], lr=0.1)
optimizer = SparseOptimizer(optimizer, model, density=0.1, total_steps=STEPS, delta_t=15)
print([layer.name for layer in optimizer.layers])

# %%
# When training is over
# ---------------------
#
# Detach the optimizer from the model, and save the model as usual. The file contains an ordinary
# model.

optimizer.detach()
print(sorted(model.state_dict())[:3])

# %%
# Next: :doc:`which settings to choose </how-to/choosing>`, or
# :doc:`how to start from a dense model <from_a_dense_model>`.
