"""The models whose steps are measured, and what they are trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torchvision.models import resnet50

from benchmarks.cifar.models import WideResNet
from benchmarks.overhead.transformer import GPT

Batch = tuple[Tensor, Tensor]
BATCH_SEED = 1


@dataclass(frozen=True)
class Workload:
    """A model, and what a whole training step of it needs.

    Attributes:
        title: Its name in the report.
        build: Makes the model; a tiny one of the same kind if its argument is true.
        sample: Says in words what one training step sees; "" if it has none.
        make_batch: Makes inputs and targets on the CPU, tiny ones if its first argument is true;
            None if the model is only weights.
    """

    title: str
    build: Callable[[bool], nn.Module]
    sample: str = ""
    make_batch: Callable[[bool, Generator], Batch] | None = None

    def batch(self, quick: bool, device: torch.device) -> Batch:
        """Inputs and targets of a training step, the same at each call.

        Raises:
            ValueError: If the model is only weights.
        """
        if self.make_batch is None:
            raise ValueError(f"workload={self.title!r} has weights only and cannot be trained")
        inputs, targets = self.make_batch(quick, torch.Generator().manual_seed(BATCH_SEED))
        return inputs.to(device), targets.to(device)


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy, for every sample or every token."""
    inputs, targets = batch
    return F.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


def _images(count: int, pixels: int, classes: int, generator: Generator) -> Batch:
    images = torch.randn(count, 3, pixels, pixels, generator=generator)
    return images, torch.randint(classes, (count,), generator=generator)


def _wrn(quick: bool) -> nn.Module:
    return WideResNet(depth=10, width=1) if quick else WideResNet(depth=22, width=2)


def _wrn_batch(quick: bool, generator: Generator) -> Batch:
    return _images(4 if quick else 128, 32, 10, generator)


def _resnet(quick: bool) -> nn.Module:
    return resnet50(num_classes=10, width_per_group=4) if quick else resnet50()


def _resnet_batch(quick: bool, generator: Generator) -> Batch:
    return _images(2, 32, 10, generator) if quick else _images(16, 64, 1000, generator)


def _gpt(quick: bool) -> nn.Module:
    if quick:
        return GPT(width=64, blocks=1, heads=2, vocabulary=32, length=16)
    return GPT(width=512, blocks=8, heads=8, vocabulary=256, length=128)


def _gpt_batch(quick: bool, generator: Generator) -> Batch:
    count, length, vocabulary = (2, 16, 32) if quick else (2, 128, 256)
    tokens = torch.randint(vocabulary, (count, length + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def _bag(quick: bool) -> nn.Module:
    return nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(20 if quick else 1000))


def _mlp(quick: bool) -> nn.Module:
    width = 8 if quick else 64
    return nn.Sequential(
        nn.Linear(17, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 6)
    )


def _mlp_batch(quick: bool, generator: Generator) -> Batch:
    count = 4 if quick else 64
    return torch.randn(count, 17, generator=generator), torch.randint(
        6, (count,), generator=generator
    )


WORKLOADS = {
    "wrn-22-2": Workload("WRN-22-2", _wrn, "128 images of 32x32", _wrn_batch),
    # At the usual 224x224 a step takes twelve times as long and the optimizer's share is smaller.
    "resnet-50": Workload("ResNet-50", _resnet, "16 images of 64x64", _resnet_batch),
    "gpt": Workload("GPT-like transformer", _gpt, "2 sequences of 128 tokens", _gpt_batch),
    # What reinforcement learning trains: calls of torch take longer than their work.
    "mlp": Workload("Two hidden layers of 64", _mlp, "64 rows of 17", _mlp_batch),
    "bag": Workload("1,000 linear layers of 32x32", _bag),
}
