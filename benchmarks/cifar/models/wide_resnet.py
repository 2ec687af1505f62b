"""Wide residual networks for 32x32 images, in every depth and width the benchmark needs.

Reference: Zagoruyko and Komodakis, "Wide Residual Networks", BMVC 2016, section 2.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEM_WIDTH = 16
GROUP_WIDTHS = (16, 32, 64)
GROUP_STRIDES = (1, 2, 2)
INPUT_CHANNELS = 3


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
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x), inplace=True)
        # A shortcut convolution shares the first normalisation; an identity shortcut skips it.
        residual = x if self.shortcut is None else self.shortcut(strided(activated, self.stride))
        out = self.conv1(activated)
        out = self.dropout(F.relu(self.norm2(out), inplace=True))
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
            small-dense model, which has about ``density`` times the weights of the full one.

    Raises:
        ValueError: If ``depth`` is not 6 n + 4, or a number is out of range.

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
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {dropout!r}")
        check_sizes(width, num_classes, width_scale)
        channels = scaled_width(STEM_WIDTH, width_scale)
        self.stem = nn.Conv2d(INPUT_CHANNELS, channels, 3, padding=1, bias=False)
        groups: list[nn.Module] = []
        for base, stride in zip(GROUP_WIDTHS, GROUP_STRIDES, strict=True):
            out_channels = scaled_width(base * width, width_scale)
            group = [WideBlock(channels, out_channels, stride, dropout)]
            group += [
                WideBlock(out_channels, out_channels, 1, dropout) for _ in range((depth - 10) // 6)
            ]
            groups.append(nn.Sequential(*group))
            channels = out_channels
        self.groups = nn.Sequential(*groups)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape ``(N, num_classes)``, of images ``(N, 3, 32, 32)``."""
        x = F.relu(self.norm(self.groups(self.stem(x))), inplace=True)
        logits: Tensor = self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
        return logits


def small_dense_scale(density: float) -> float:
    """The factor on every width that leaves about ``density`` of a network's weights.

    Example:
        >>> small_dense_scale(0.25)
        0.5
    """
    if not 0.0 < density <= 1.0:
        raise ValueError(f"density must be in (0, 1], got {density!r}")
    return math.sqrt(density)


def scaled_width(width: int, scale: float) -> int:
    """``width`` times ``scale``, rounded to the nearest integer and at least 1."""
    return max(1, round(width * scale))


def strided(x: Tensor, stride: int) -> Tensor:
    """Every stride-th pixel, of which a strided 1x1 convolution is one without a stride.

    Written as a stride, oneDNN (torch 2.14) corrupts the heap in its weight gradient, in
    channels-last, for channels in no multiple of 16 and a batch that the threads cannot share
    evenly.
    """
    return x[:, :, ::stride, ::stride]


def check_sizes(width: int, num_classes: int, width_scale: float) -> None:
    """Raise an error if one of them is no number that a network can be built with."""
    for name, value, least in (("width", width, 1), ("num_classes", num_classes, 2)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value!r}")
    if width_scale <= 0.0:
        raise ValueError(f"width_scale must be positive, got {width_scale!r}")


def init_weights(model: nn.Module) -> None:
    """Draw all convolutions anew, as suits a ReLU after each (He et al. 2015); no bias is left."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
