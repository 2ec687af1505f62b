"""
A transformer with a dense embedding
====================================

On this page a small language model is trained with a fifth of the weights of its attention and
feed-forward layers. Its embedding, and the output layer that shares the embedding's weight, stay
dense without any setting.
"""

import math
from pydoc_data.topics import topics

import torch
import torch.nn.functional as F
from torch import nn

from sparseopt import SparseOptimizer

# %%
# The text
# --------
#
# The text is the manual that comes with Python, its first 200,000 characters. The model reads
# characters.

text = "\n".join(topics.values())[:200_000]
alphabet = sorted(set(text))
number = {character: index for index, character in enumerate(alphabet)}
data = torch.tensor([number[character] for character in text])
held_out, data = data[:10_000], data[10_000:]
CONTEXT, BATCH, WIDTH, HEADS = 48, 24, 64, 4


def batch(source: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Return characters and the character after each of them, both ``(BATCH, CONTEXT)``."""
    starts = torch.randint(len(source) - CONTEXT - 1, (BATCH,), generator=generator)
    window = torch.stack([source[start : start + CONTEXT + 1] for start in starts])
    return window[:, :-1], window[:, 1:]


# %%
# The model
# ---------


class Block(nn.Module):
    """Attention to what came before, then a feed-forward network."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, future: torch.Tensor) -> torch.Tensor:
        normed = self.norm1(x)
        x = x + self.attention(normed, normed, normed, attn_mask=future, need_weights=False)[0]
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Writer(nn.Module):
    """Predicts the next character."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(len(alphabet), WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(CONTEXT, WIDTH))
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm = nn.LayerNorm(WIDTH)
        self.output = nn.Linear(WIDTH, len(alphabet), bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.output.weight = self.embedding.weight
        self.register_buffer("future", torch.ones(CONTEXT, CONTEXT).triu(1).bool())

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        x = self.embedding(characters) + self.position
        for block in self.blocks:
            x = block(x, self.future)
        return self.output(self.norm(x))


# %%
# The optimizer
# -------------
#
# As usual for transformers: AdamW, with weight decay for matrices only, and a learning rate that
# rises first. The wrapper comes last. Embeddings need no setting.

STEPS = 240
torch.manual_seed(0)
model = Writer()
matrices = [p for p in model.parameters() if p.dim() >= 2]
others = [p for p in model.parameters() if p.dim() < 2]
optimizer = torch.optim.AdamW(
    [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=3e-3
)
optimizer = SparseOptimizer(
    optimizer, model, method="rigl", density=0.2, total_steps=STEPS, delta_t=20
)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=STEPS)

# %%
# The projections of attention and the linear layers of the blocks are sparse. The embedding is
# dense, and so is ``output.weight``, because it is the same tensor. Positions, biases and LayerNorm
# are dense too. The rules are in :doc:`/explanation/semantics`.

print(optimizer.summary())
assert not any("embedding" in name or "output" in name for name in optimizer.masks)

# %%
# Training
# --------

generator = torch.Generator().manual_seed(0)


def bits_per_character(source: torch.Tensor) -> float:
    """On the same four batches every time."""
    same = torch.Generator().manual_seed(1)
    with torch.no_grad():
        losses = [F.cross_entropy(model(x).flatten(0, 1), y.flatten())
                  for x, y in (batch(source, same) for _ in range(4))]  # fmt: skip
    return torch.stack(losses).mean().item() / math.log(2)


for step in range(STEPS):
    if step % 60 == 0:
        print(f"step {step:3}: {bits_per_character(held_out):.2f} bits per character")
    inputs, targets = batch(data, generator)
    optimizer.zero_grad()
    F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    scheduler.step()
print(f"step {STEPS}: {bits_per_character(held_out):.2f} bits per character")

# %%
# Clipping sees masked gradients. On the steps that move masks it sees the gradients of all weights,
# because RigL grows weights by their gradients.

for record in optimizer.history:
    print(f"step {record.step:3}: {record.dropped} weights dropped, {record.grown} grown")

# %%
# Memory
# ------
#
# AdamW keeps two numbers for every weight. Here it keeps them for live weights only. The embedding
# is dense, so its two tensors have the embedding's shape.

up = model.blocks[0].up.weight
print("weights of the layer      ", up.numel())
print("first moments kept for it ", optimizer.state[up]["exp_avg"].numel())
print("first moments of embedding", tuple(optimizer.state[model.embedding.weight]["exp_avg"].shape))

# %%
# In a small model like this one the embedding has a large share of all parameters. The density of
# 0.2 counts only the weights that can be sparse, not the full model:

every = sum(p.numel() for p in model.parameters())
dropped = sum(layer.numel - layer.live for layer in optimizer.layers)
print(f"density {optimizer.density:.3f}; of all {every:,} parameters {1 - dropped / every:.3f}")

# %%
# To make ``blocks.0`` dense too, put its weights into a param group with ``density=False``, as at
# the end of :doc:`your_own_cnn`. For models of ``transformers`` see :doc:`with_hugging_face`.
