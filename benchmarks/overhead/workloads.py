"""The models whose steps are measured, and their data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torchvision.models import resnet50

from benchmarks.cifar.models import WideResNet

Batch = tuple[Tensor, Tensor]
BATCH_SEED = 1


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


@dataclass(frozen=True)
class Workload:
    """A model, with its description, inputs and loss for a full training step.

    A model that is only weights has no batch. ``repeats`` is a factor on the number of rounds, for
    models whose steps take next to no time.
    """

    title: str
    build: Callable[[], nn.Module]
    sample: str = ""
    make_batch: Callable[[Generator], Batch] | None = None
    repeats: int = 1

    def batch(self, device: torch.device) -> Batch:
        """Inputs and targets of a training step, the same at each call."""
        if self.make_batch is None:
            raise ValueError(f"workload={self.title!r} has weights only and cannot be trained")
        inputs, targets = self.make_batch(torch.Generator().manual_seed(BATCH_SEED))
        return inputs.to(device), targets.to(device)


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy, for every sample or every token."""
    inputs, targets = batch
    return F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


def _random(count: int, shape: tuple[int, ...], classes: int) -> Callable[[Generator], Batch]:
    """Return a function that makes ``count`` random inputs of this shape, with labels."""

    def make(generator: Generator) -> Batch:
        inputs = torch.randn(count, *shape, generator=generator)
        return inputs, torch.randint(classes, (count,), generator=generator)

    return make


def _sequences(generator: Generator) -> Batch:
    tokens = torch.randint(256, (2, 129), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def _policy() -> nn.Module:
    return nn.Sequential(
        nn.Linear(17, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 6)
    )


WORKLOADS = {
    "wrn-22-2": Workload(
        "WRN-22-2",
        lambda: WideResNet(depth=22, width=2),
        "128 images of 32x32",
        _random(128, (3, 32, 32), 10),
    ),
    # At the usual 224x224 a step takes twelve times as long, and the optimizer's share is smaller.
    "resnet-50": Workload(
        "ResNet-50", resnet50, "16 images of 64x64", _random(16, (3, 64, 64), 1000)
    ),
    "gpt": Workload(
        "GPT-like transformer",
        lambda: GPT(width=512, blocks=8, heads=8, vocabulary=256, length=128),
        "2 sequences of 128 tokens",
        _sequences,
    ),
    # A policy as for MuJoCo tasks, so small that calls take more time than arithmetic.
    "mlp": Workload("17-64-64-6", _policy, "256 states", _random(256, (17,), 6), repeats=20),
    "bag": Workload(
        "1,000 linear layers of 32x32",
        lambda: nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(1000)),
    ),
}
