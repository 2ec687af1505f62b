"""Transformers of any widths: a vision transformer, and a stack of GPT's blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: The width of an attention head.
HEAD_DIM = 32


@dataclass(frozen=True)
class Shape:
    """The widths of a transformer.

    Attributes:
        width: the width of the residual stream.
        head_dim: the width of each head.
        heads: heads of each block.
        neurons: hidden neurons of each block's feed-forward layers.
    """

    width: int
    head_dim: int
    heads: tuple[int, ...]
    neurons: tuple[int, ...]

    @classmethod
    def uniform(
        cls,
        depth: int,
        width: int,
        head_dim: int,
        heads: int | None = None,
        neurons: int | None = None,
    ) -> Shape:
        """Equal blocks; by default with heads that fill the width, and 4 neurons a channel."""
        heads = width // head_dim if heads is None else heads
        neurons = 4 * width if neurons is None else neurons
        return cls(width, head_dim, (heads,) * depth, (neurons,) * depth)

    def thinner(self, share: float) -> Shape:
        """The same width, with a share of the heads and of the neurons."""
        return Shape(
            self.width, self.head_dim, _share(self.heads, share), _share(self.neurons, share)
        )


def _share(counts: Sequence[int], share: float) -> tuple[int, ...]:
    return tuple(max(1, int(share * count + 0.5)) for count in counts)


class Block(nn.Module):
    """Attention and feed-forward layers, each behind a LayerNorm."""

    def __init__(self, width: int, head_dim: int, heads: int, neurons: int, *, causal: bool):
        super().__init__()
        self.head_dim = head_dim
        self.causal = causal
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, neurons)
        self.fc2 = nn.Linear(neurons, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return as many tokens of the same width."""
        query, key, value = (
            part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        heads = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.proj(heads.transpose(1, 2).flatten(2))
        hidden: Tensor = self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return x + hidden


def blocks(shape: Shape, *, causal: bool) -> nn.Sequential:
    """The blocks of a transformer."""
    return nn.Sequential(
        *(
            Block(shape.width, shape.head_dim, heads, neurons, causal=causal)
            for heads, neurons in zip(shape.heads, shape.neurons, strict=True)
        )
    )


class ViT(nn.Module):
    """A vision transformer that averages its tokens (Dosovitskiy et al. 2021)."""

    def __init__(self, shape: Shape, *, image: int = 32, patch: int = 4, classes: int = 10):
        super().__init__()
        self.embed = nn.Conv2d(3, shape.width, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, (image // patch) ** 2, shape.width))
        self.blocks = blocks(shape, causal=False)
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, ``(batch, classes)``, of images, ``(batch, 3, height, width)``."""
        x = self.embed(x).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return logits


class GPTBlocks(nn.Module):
    """A stack of GPT's blocks; inputs and outputs are tokens of the residual width."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.blocks = blocks(shape, causal=True)
        self.norm = nn.LayerNorm(shape.width)

    def forward(self, x: Tensor) -> Tensor:
        """Return as many tokens of the same width, ``(batch, tokens, width)``."""
        normed: Tensor = self.norm(self.blocks(x))
        return normed


def shape_of(model: nn.Module) -> Shape:
    """The actual widths of a model of these classes."""
    found = [module for module in model.modules() if isinstance(module, Block)]
    first = found[0]
    return Shape(
        first.norm1.normalized_shape[0],
        first.head_dim,
        tuple(block.proj.in_features // block.head_dim for block in found),
        tuple(block.fc1.out_features for block in found),
    )
