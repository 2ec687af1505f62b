"""Residual networks with bottlenecks, in the variant for images of 32x32 pixels.

The stem is a 3x3 convolution without stride and without pooling, so that the first group works at
the full 32x32. Reference: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016;
the variant is table 1 of the report's supplement.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cifar.models.wide_resnet import (
    INPUT_CHANNELS,
    check_sizes,
    init_weights,
    scaled_width,
    strided,
)

GROUP_FACTORS = (1, 2, 4, 8)
GROUP_STRIDES = (1, 2, 2, 2)
EXPANSION = 4
BLOCKS = {14: (1, 1, 1, 1), 26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


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
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)), inplace=True)
        out = F.relu(self.norm2(self.conv2(out)), inplace=True)
        out = self.norm3(self.conv3(out))
        if self.shortcut is not None:
            x = self.shortcut_norm(self.shortcut(strided(x, self.stride)))
        summed: Tensor = out + x
        return F.relu(summed, inplace=True)


class ResNet(nn.Module):
    """ResNet-depth for images of 32x32 pixels.

    Args:
        depth: Number of layers, 14, 26, 50 or 101.
        width: Channels of the stem; 64 is the published network.
        num_classes: Number of classes.
        width_scale: Factor on *every* width, the stem's included, as in ``WideResNet``.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> model = ResNet(depth=50, num_classes=100)
        >>> sum(p.numel() for p in model.parameters())
        23705252
    """

    def __init__(
        self, depth: int = 50, width: int = 64, num_classes: int = 100, width_scale: float = 1.0
    ) -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise ValueError(f"depth must be one of {', '.join(map(str, BLOCKS))}, got {depth!r}")
        check_sizes(width, num_classes, width_scale)
        channels = scaled_width(width, width_scale)
        self.stem = nn.Conv2d(INPUT_CHANNELS, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        groups: list[nn.Module] = []
        for factor, stride, blocks in zip(GROUP_FACTORS, GROUP_STRIDES, BLOCKS[depth], strict=True):
            inner = scaled_width(width * factor, width_scale)
            out_channels = scaled_width(width * factor * EXPANSION, width_scale)
            group = [Bottleneck(channels, inner, out_channels, stride)]
            group += [Bottleneck(out_channels, inner, out_channels, 1) for _ in range(1, blocks)]
            groups.append(nn.Sequential(*group))
            channels = out_channels
        self.groups = nn.Sequential(*groups)
        self.head = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape ``(N, num_classes)``, of images ``(N, 3, 32, 32)``."""
        x = self.groups(F.relu(self.norm(self.stem(x)), inplace=True))
        logits: Tensor = self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return logits
