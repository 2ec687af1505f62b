"""
Faster training on a CPU
========================

On this page a network is trained with a tenth of its weights, and its passes compute with these
weights only. A report shows what this gains, layer by layer. Then new objects, as in a second
process, continue the run.
"""

import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from sparseopt import SparseOptimizer, speed_up

# %%
# The network and the data
# ------------------------
#
# The data are handwritten digits that come with scikit-learn. The convolutions are wide enough to
# gain from sparsity.

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
train_images, test_images = images[:1408], images[-360:]
train_labels, test_labels = labels[:1408], labels[-360:]


def layer(channels: int, out: int) -> list[nn.Module]:
    """A convolution, a normalisation, and a nonlinearity."""
    return [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]


def network() -> nn.Module:
    """The same first weights every time."""
    torch.manual_seed(0)
    return nn.Sequential(
        *layer(1, 64), *layer(64, 128), *layer(128, 128), nn.MaxPool2d(2), *layer(128, 128),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


EPOCHS, BATCH = 4, 64
STEPS = EPOCHS * len(train_images) // BATCH


def sparse(model: nn.Module) -> SparseOptimizer:
    """Ten percent of the weights, moved by RigL."""
    inner = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return SparseOptimizer(
        inner, model, method="rigl", density=0.1, init="uniform", total_steps=STEPS, delta_t=10
    )


# %%
# The loop
# --------
#
# The loop is ordinary. It also works under ``torch.autocast("cpu", torch.bfloat16)``.


def train(model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int) -> float:
    """Return the seconds that the last epoch took."""
    model.train()
    seconds = 0.0
    for _ in range(epochs):
        start = time.perf_counter()
        for batch in torch.randperm(len(train_images)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(train_images[batch]), train_labels[batch]).backward()
            optimizer.step()
        seconds = time.perf_counter() - start
    return seconds


def accuracy(model: nn.Module) -> float:
    """Return the accuracy on the test images, in percent."""
    model.eval()
    with torch.no_grad():
        found = model(test_images).argmax(1)
    return 100 * (found == test_labels).float().mean().item()


# %%
# One more line
# -------------
#
# The first epochs of both runs take the same batches. Only the line with ``speed_up`` differs.

plain = network()
plain_optimizer = sparse(plain)
before = train(plain, plain_optimizer, EPOCHS // 2)

model = network()
optimizer = sparse(model)
handle = speed_up(model, optimizer)
after = train(model, optimizer, EPOCHS // 2)
print(f"seconds of an epoch: {before:.2f} without, {after:.2f} with")

# %%
# What was chosen
# ---------------
#
# Before the first step a copy of the model was measured: every layer alone, then the full model. A
# layer that is not faster on this machine does not change. Without kernels nothing changes. The
# last lines say where the time of a pass goes now, and so what could still become faster.

print(handle.report)

# %%
# Stop and resume
# ---------------
#
# A checkpoint does not change with ``speed_up``. It does not contain the choice of implementations,
# because another machine may choose others. The choice is plain data, the plan. With ``plan=``
# nothing is measured and the same implementations run. So a run that is resumed on the same machine
# computes the same bits.

file = Path(tempfile.mkdtemp()) / "checkpoint.pt"
torch.save(
    {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "plan": handle.plan}, file
)

saved = torch.load(file)
resumed = network()
resumed_optimizer = sparse(resumed)
resumed.load_state_dict(saved["model"])
resumed_optimizer.load_state_dict(saved["optimizer"])
resumed_handle = speed_up(resumed, resumed_optimizer, plan=saved["plan"])

for one, its_optimizer in ((model, optimizer), (resumed, resumed_optimizer)):
    torch.manual_seed(1)
    train(one, its_optimizer, EPOCHS // 2)
pairs = zip(model.parameters(), resumed.parameters(), strict=True)
assert all(torch.equal(weight, other) for weight, other in pairs)
print(f"accuracy: {accuracy(resumed):.1f} %")

# %%
# At the end
# ----------
#
# ``undo()`` returns to an ordinary model, and so does ``optimizer.detach()``. ``speed_up`` never
# changes the form of weights, masks and state.

resumed_handle.undo()
assert type(resumed[0]) is nn.Conv2d
print(f"live: {resumed_optimizer.density:.2f} of the weights")
