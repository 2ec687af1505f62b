"""
A smaller transformer
=====================

On this page a small vision transformer loses half of its heads and three quarters of its hidden
neurons while it trains. This leaves an ordinary smaller model, which runs on any hardware. The page
compares it with the simplest alternative: a narrower dense network.
"""

import time

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from sparseopt import CompactedTraining, RigLStruct, SparseOptimizer, SRigL, compact

# %%
# Data and model
# --------------
#
# Handwritten digits of 8 x 8 pixels: each row of pixels is a token.

digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32) / 16
labels = torch.tensor(digits.target)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
train, test = order[:1400], order[1400:]
EPOCHS, BATCH = 16, 50
STEPS = EPOCHS * len(train) // BATCH


class Block(nn.Module):
    """Attention and feed-forward layers. The code contains no number of heads."""

    def __init__(self, width: int, head_dim: int = 8):
        super().__init__()
        self.head_dim = head_dim
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Rows(nn.Module):
    """Classifies an image by its rows."""

    def __init__(self, width: int):
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.position = nn.Parameter(0.1 * torch.randn(8, width))
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.blocks(self.embed(x) + self.position)).mean(1))


def fit(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Train a model; the loop is the same for all models."""
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=STEPS)
    generator = torch.Generator().manual_seed(1)
    for _ in range(EPOCHS):
        for chosen in train[torch.randperm(len(train), generator=generator)].split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def describe(title: str, model: nn.Module) -> None:
    """Print accuracy and size."""
    right = (model.eval()(images[test]).argmax(1) == labels[test]).float().mean()
    size = sum(parameter.numel() for parameter in model.parameters())
    print(f"{title:22} {size:6} parameters, {100 * right:.1f} % right")


# %%
# Dense, and narrower
# -------------------
#
# The narrower network has about as many weights as ``rigl-struct`` leaves below, so ``rigl-struct``
# has to beat it.

for title, width in (("dense", 64), ("narrower", 40)):
    torch.manual_seed(0)
    model = Rows(width)
    fit(model, torch.optim.AdamW(model.parameters()))
    describe(title, model)

# %%
# Entire neurons and heads
# ------------------------
#
# ``kinds`` tells ``rigl-struct`` which share of the neurons and heads is live. The method finds
# them with an example input. With ``CompactedTraining`` the model computes only live neurons and
# heads between updates.

torch.manual_seed(0)
model = Rows(64)
optimizer = SparseOptimizer(
    torch.optim.AdamW(model.parameters()),
    model,
    method=RigLStruct(kinds={"neuron": 0.25, "head": 0.5}),
    example_inputs=images[:2],
    total_steps=STEPS,
    delta_t=20,
)
with CompactedTraining(model, optimizer, example_inputs=images[:2]):
    print("between updates:", model.blocks[0].qkv, model.blocks[0].up, sep="\n")
    fit(model, optimizer)

# %%
# More neurons and heads were live at some time in training than are live at the end:

for layer in optimizer.layers:
    if layer.name in {"blocks.0.qkv.weight", "blocks.0.up.weight"}:
        ever = layer.ever_live / layer.numel
        print(f"{layer.name}: {layer.density:.0%} live, {ever:.0%} ever")

# %%
# ``compact`` returns an ordinary model of the same class, which computes the same.

smaller = compact(model, optimizer).model
describe("rigl-struct", smaller)
print(smaller.blocks[1])

# %%
# Single weights, and neurons without weights
# -------------------------------------------
#
# ``SRigL`` moves single weights. A neuron is ablated if most of its weights would be of more use in
# other neurons. The method chooses how many neurons it ablates, by ``gamma``.

torch.manual_seed(0)
model = Rows(64)
optimizer = SparseOptimizer(
    torch.optim.AdamW(model.parameters()),
    model,
    method=SRigL(gamma=0.95),
    init={"embed": 1.0, "head": 1.0, "*": 0.1},
    total_steps=STEPS,
    delta_t=20,
)
fit(model, optimizer)
smaller = compact(model, optimizer).model
describe("srigl", smaller)
print("neurons left:", [block.up.out_features for block in smaller.blocks], "of 256")

# %%
# How much time it saves
# ----------------------
#
# In a model this small, overhead takes nearly all of the time, so no time is printed here.
# :doc:`/results/structured` has times of larger models. There and here the smaller dense network
# is more accurate than ``rigl-struct``; :doc:`/how-to/faster` says which method to choose. To time
# your model, run both models in turn:


@torch.no_grad()
def seconds(model: nn.Module) -> float:
    start = time.perf_counter()
    model(images)
    return time.perf_counter() - start


assert seconds(smaller) > 0
