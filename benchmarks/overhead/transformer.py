"""A small GPT: the transformer among the benchmark's models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Causal self-attention and a feed-forward network, with norms and shortcuts."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)
        self.norm_2 = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self._attend(self.norm_1(tokens))
        return tokens + self.mlp_out(F.gelu(self.mlp_in(self.norm_2(tokens))))

    def _attend(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(tokens).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.proj(mixed.transpose(1, 2).flatten(-2))


class GPT(nn.Module):
    """A decoder-only transformer. Nearly all of its weights are in linear layers of the blocks."""

    def __init__(self, width: int, blocks: int, heads: int, vocabulary: int, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token, (batch, length, vocabulary), at every place of ``tokens``."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        hidden = self.blocks(self.embedding(tokens) + self.position(places))
        return self.head(self.norm(hidden))
