"""The networks that are timed in training, with an optimizer and a batch for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torchvision.models import resnet50

from benchmarks.cifar.models import WideResNet
from benchmarks.speed.models import cifar_densenet, cifar_resnet50

CLASSES = 10
CHARACTERS = 256


@dataclass(frozen=True)
class Workload:
    """A network in training.

    Attributes:
        title: the network's name in tables.
        batch: samples of a step.
        model: a function that makes the network.
        inputs: a function that makes a batch of a given number of samples.
        optimizer: a function that makes the inner optimizer.
        linear_only: whether only linear layers are made sparse, all except the last.
    """

    title: str
    batch: int
    model: Callable[[], nn.Module] = field(repr=False)
    inputs: Callable[[int], tuple[Tensor, Tensor]] = field(repr=False)
    optimizer: Callable[[nn.Module], Optimizer] = field(repr=False)
    linear_only: bool = False

    def init(self, name: str, density: float, model: nn.Module) -> str | Mapping[str, float]:
        """The distribution of the density: ``name``, or linear layers alone."""
        if not self.linear_only:
            return name
        layers = dict(layers_of(model))
        last = list(layers)[-1]
        return {
            name: density if isinstance(one, nn.Linear) and name != last else 1.0
            for name, one in layers.items()
        }


def layers_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Convolutions and linear layers, by name."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            yield name, module


class Block(nn.Module):
    """A block of a transformer: attention and two linear layers, each after a normalisation."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.transpose(1, 3).unbind(2)
        # On CPUs torch's scaled_dot_product_attention takes twice as long as these operations.
        scores = q @ k.mT * q.shape[-1] ** -0.5
        if self.causal:
            length = x.shape[1]
            scores = scores + scores.new_full((length, length), -torch.inf).triu(1)
        seen = (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)
        x = x + self.out(seen)
        mixed: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return mixed


class Gpt(nn.Module):
    """A decoder over characters: the blocks of GPT-2 (Radford et al., 2019), few of them."""

    def __init__(self, width: int = 768, blocks: int = 2, length: int = 256) -> None:
        super().__init__()
        self.characters = nn.Embedding(CHARACTERS, width)
        self.places = nn.Parameter(torch.randn(length, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, width // 64, True) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CHARACTERS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.characters(x) + self.places)
        logits: Tensor = self.head(self.norm(x))
        return logits.flatten(0, 1)


class VisionTransformer(nn.Module):
    """ViT-S/16 (Dosovitskiy et al., ICLR 2021; Touvron et al., ICML 2021).

    The head reads the mean of all tokens.
    """

    def __init__(self, width: int = 384, blocks: int = 12, size: int = 224) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.places = nn.Parameter(torch.randn((size // 16) ** 2, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, width // 64, False) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.patches(x).flatten(2).mT + self.places)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


def _images(size: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    def make(batch: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
        return x, torch.randint(0, CLASSES, (batch,))

    return make


def _characters(batch: int) -> tuple[Tensor, Tensor]:
    text = torch.randint(0, CHARACTERS, (batch, 257))
    return text[:, :-1].contiguous(), text[:, 1:].flatten()


def _sgd(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


def _adamw(model: nn.Module) -> Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


#: By name, in the order of the report.
WORKLOADS: dict[str, Workload] = {
    "wrn-22-2": Workload("WRN-22-2", 128, lambda: WideResNet(22, 2), _images(32), _sgd),
    "wrn-22-2-dropout": Workload(
        "WRN-22-2, dropout 0.3", 128, lambda: WideResNet(22, 2, 0.3), _images(32), _sgd
    ),
    "cifar-resnet50": Workload("ResNet-50, 32x32", 64, cifar_resnet50, _images(32), _sgd),
    "densenet": Workload("DenseNet-BC-100-12, 32x32", 64, cifar_densenet, _images(32), _sgd),
    "resnet50": Workload("ResNet-50, 224x224", 16, resnet50, _images(224), _sgd),
    "gpt": Workload("two GPT blocks, width 768", 8, Gpt, _characters, _adamw, True),
    "vit-s": Workload("ViT-S/16, 224x224", 16, VisionTransformer, _images(224), _adamw, True),
}
