"""
Exporting a smaller model
=========================

On this page a network drops entire channels while it trains. Then the dropped channels are removed,
which leaves an ordinary smaller model. The model is saved by ``torch.export`` and run by ONNX
Runtime.
"""

import logging
import tempfile
import warnings
from pathlib import Path

import onnxruntime
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from sparseopt import RigLStruct, SparseOptimizer, compact, find_channel_groups

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
train_images, test_images = images[:-360], images[-360:]
train_labels, test_labels = labels[:-360], labels[-360:]

# %%
# Train with entire channels
# --------------------------
#
# Other methods leave zeros scattered over a model of the same shape. ``RigLStruct`` drops and grows
# entire channels, with all their parts. An example input is enough to find the channels.

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
    nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(64, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
)  # fmt: skip
groups = find_channel_groups(model, train_images[:2])

EPOCHS, BATCH = 8, 48
steps = EPOCHS * -(-len(train_images) // BATCH)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
optimizer = SparseOptimizer(
    optimizer, model, method=RigLStruct(groups=groups), density=0.2, total_steps=steps, delta_t=15
)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=steps)
for _ in range(EPOCHS):
    for batch in torch.randperm(len(train_images)).split(BATCH):
        optimizer.zero_grad()
        F.cross_entropy(model(train_images[batch]), train_labels[batch]).backward()
        optimizer.step()
        scheduler.step()
model.eval()


def accuracy(logits: torch.Tensor) -> str:
    return f"{100 * (logits.argmax(1) == test_labels).float().mean():.1f} %"


with torch.no_grad():
    expected = model(test_images)
print(f"accuracy with masks: {accuracy(expected)}")

# %%
# Remove the channels
# -------------------
#
# The report has the old and the new size of each layer, and names dropped channels that could not
# be removed.

compacted = compact(model, optimizer, example_inputs=test_images[:2])
smaller = compacted.model
print(compacted.report)

# %%
# The result is a model of the same class with smaller layers. It computes the same and has no
# masks:

print(smaller[3])
with torch.no_grad():
    found = smaller(test_images)
torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
print(f"accuracy without them: {accuracy(found)}")

# %%
# torch.export
# ------------
#
# The number of images in a batch stays open.

folder = Path(tempfile.mkdtemp())
batch = torch.export.Dim("batch")
program = torch.export.export(smaller, (test_images[:2],), dynamic_shapes=({0: batch},))
torch.export.save(program, folder / "smaller.pt2")

with torch.no_grad():
    found = torch.export.load(folder / "smaller.pt2").module()(test_images)
torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

# %%
# ONNX
# ----
#
# torch's exporter takes the smaller model, and another runtime computes the same.

logging.getLogger("torch.onnx").setLevel(logging.ERROR)
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    warnings.simplefilter("ignore", FutureWarning)
    torch.onnx.export(
        smaller, (test_images[:2],), folder / "smaller.onnx", dynamo=True, verbose=False,
        dynamic_shapes=({0: batch},),
    )  # fmt: skip

session = onnxruntime.InferenceSession(folder / "smaller.onnx", providers=["CPUExecutionProvider"])
(found,) = session.run(None, {session.get_inputs()[0].name: test_images.numpy()})
torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
print(f"accuracy in ONNX Runtime: {accuracy(torch.from_numpy(found))}")

# %%
# :doc:`/how-to/smaller-models` says which channels can be removed, how much time this saves, and
# what to do for linear layers whose zeros are scattered.
