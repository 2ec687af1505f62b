"""The networks of the benchmark: wide and plain residual networks for 32x32 images.

References: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, section 2; He et al.,
"Deep Residual Learning for Image Recognition", CVPR 2016, in the variant of table 1 of the report's
supplement, whose stem has neither a stride nor pooling.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from benchmarks.cifar.config import BLOCKS, Protocol
from benchmarks.cifar.grid import DENSE_RUN, RunSpec
from benchmarks.cifar.methods import SMALL_DENSE

STEM_WIDTH = 16
INPUT_CHANNELS = 3
EXPANSION = 4


def build_model(protocol: Protocol, spec: RunSpec) -> nn.Module:
    """The run's network, with initial weights that depend on the global random state only."""
    # This factor on every width leaves about ``density`` of the weights.
    scale = math.sqrt(spec.density or 1.0) if spec.method == SMALL_DENSE else 1.0
    config = protocol.model
    model: nn.Module
    if config.kind == "wrn":
        model = WideResNet(config.depth, config.width, config.dropout, protocol.classes, scale)
    else:
        model = ResNet(config.depth, config.width, protocol.classes, scale)
    channels_last = protocol.training.channels_last
    return model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def full_model(protocol: Protocol) -> nn.Module:
    """The dense network of a protocol; the global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        return build_model(protocol, DENSE_RUN)


class WideBlock(nn.Module):
    """A pre-activation residual block: two 3x3 convolutions with dropout between them."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if in_channels != out_channels or stride != 1:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.sample = sampling(stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu(self.norm1(x))
        # A shortcut convolution shares the first normalisation; an identity shortcut skips it.
        residual = x if self.shortcut is None else self.shortcut(self.sample(activated))
        out = self.conv1(activated)
        out = self.dropout(self.relu(self.norm2(out)))
        summed: Tensor = residual + self.conv2(out)
        return summed


class WideResNet(nn.Module):
    """WRN-depth-width for images of 32x32 pixels.

    Args:
        depth: Number of layers, ``6 n + 4`` with ``n`` blocks in each of the three groups.
        width: Widening factor of the three groups (16, 32 and 64 channels times this).
        dropout: Dropout probability inside the blocks.
        num_classes: Number of classes.
        width_scale: Factor on *every* width, the stem's included. ``sqrt(density)`` gives the
            small-dense model, which has about ``density`` times the full model's weights.

    Example:
        >>> model = WideResNet(depth=22, width=2)
        >>> sum(p.numel() for p in model.parameters())
        1079642
    """

    def __init__(
        self,
        depth: int = 22,
        width: int = 2,
        dropout: float = 0.0,
        num_classes: int = 10,
        width_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be 6 n + 4 with n >= 1 (10, 16, 22, ...), got {depth!r}")
        channels = scaled_width(STEM_WIDTH, width_scale)
        self.stem = nn.Conv2d(INPUT_CHANNELS, channels, 3, padding=1, bias=False)
        groups: list[nn.Module] = []
        for factor, stride in ((1, 1), (2, 2), (4, 2)):
            inner = scaled_width(STEM_WIDTH * factor * width, width_scale)
            group = [WideBlock(channels, inner, stride, dropout)]
            group += [WideBlock(inner, inner, 1, dropout) for _ in range((depth - 10) // 6)]
            groups.append(nn.Sequential(*group))
            channels = inner
        self.groups = nn.Sequential(*groups)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape ``(N, num_classes)``, of images ``(N, 3, 32, 32)``."""
        x = self.relu(self.norm(self.groups(self.stem(x))))
        logits: Tensor = self.head(torch.flatten(self.pool(x), 1))
        return logits


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution, each followed by BatchNorm; the stride is in the second."""

    def __init__(self, in_channels: int, inner: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            self.shortcut_norm = nn.BatchNorm2d(out_channels)
        self.sample = sampling(stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.relu(self.norm2(self.conv2(out)))
        out = self.norm3(self.conv3(out))
        if self.shortcut is not None:
            x = self.shortcut_norm(self.shortcut(self.sample(x)))
        summed: Tensor = out + x
        activated: Tensor = self.relu(summed)
        return activated


class ResNet(nn.Module):
    """ResNet-depth for images of 32x32 pixels.

    Args:
        depth: Number of layers, 14, 26, 50 or 101.
        width: Channels of the stem; 64 is the published network.
        num_classes: Number of classes.
        width_scale: As in ``WideResNet``.

    Example:
        >>> model = ResNet(depth=50, num_classes=100)
        >>> sum(p.numel() for p in model.parameters())
        23705252
    """

    def __init__(
        self, depth: int = 50, width: int = 64, num_classes: int = 100, width_scale: float = 1.0
    ) -> None:
        super().__init__()
        channels = scaled_width(width, width_scale)
        self.stem = nn.Conv2d(INPUT_CHANNELS, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        groups: list[nn.Module] = []
        for number, blocks in enumerate(BLOCKS[depth]):
            factor, stride = 2**number, 1 if number == 0 else 2
            inner = scaled_width(width * factor, width_scale)
            out_channels = scaled_width(width * factor * EXPANSION, width_scale)
            group = [Bottleneck(channels, inner, out_channels, stride)]
            group += [Bottleneck(out_channels, inner, out_channels, 1) for _ in range(1, blocks)]
            groups.append(nn.Sequential(*group))
            channels = out_channels
        self.groups = nn.Sequential(*groups)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape ``(N, num_classes)``, of images ``(N, 3, 32, 32)``."""
        x = self.groups(self.relu(self.norm(self.stem(x))))
        logits: Tensor = self.head(torch.flatten(self.pool(x), 1))
        return logits


def scaled_width(width: int, scale: float) -> int:
    """``width`` times ``scale``, rounded to the nearest integer and at least 1."""
    return max(1, round(width * scale))


def sampling(stride: int) -> nn.Module:
    """A module that takes every stride-th pixel, so that a 1x1 convolution needs no stride."""
    # With a stride, oneDNN (torch 2.14) corrupts the heap in the weight gradient, in channels-last,
    # if channels are not a multiple of 16 and threads share the batch unevenly. With a slice, the
    # gradient has another memory format than others, and is slow to add.
    return nn.Identity() if stride == 1 else nn.AvgPool2d(1, stride)


def init_weights(model: nn.Module) -> None:
    """Draw weights of convolutions as for a ReLU after each (He et al. 2015); set biases to 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
