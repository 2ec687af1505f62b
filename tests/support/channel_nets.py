"""Small nets for entire channels, with a table of what each channel owns, written by hand."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from sparseopt import ChannelGroup, find_channel_groups
from tests.oracle import Owned
from tests.support.nets import CLASSES, make

INPUT = torch.zeros(2, 3, 6, 6)


class ChannelNet(nn.Module):
    """A residual connection, a depthwise convolution, and a flattening, all with BatchNorm."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(6)
        self.c1 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.c2 = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(6)
        self.wide = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.bn3 = nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.bn4 = nn.BatchNorm2d(8)
        self.fc1 = nn.Linear(8 * 9, 12)
        self.fc2 = nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        x = F.relu(x + self.bn2(self.c2(F.relu(self.bn1(self.c1(x))))))
        x = F.relu(self.bn3(self.wide(x)))
        x = F.relu(self.bn4(self.depth(x)))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


OWNED = {
    "stem.weight": Owned(
        6,
        makers=("stem.weight", "c2.weight"),
        scales=("bn0.weight", "bn2.weight"),
        vectors=("bn0.weight", "bn0.bias", "bn2.weight", "bn2.bias"),
        readers={"c1.weight": 1, "wide.weight": 1},
    ),
    "c1.weight": Owned(
        6,
        makers=("c1.weight",),
        scales=("bn1.weight",),
        vectors=("bn1.weight", "bn1.bias"),
        readers={"c2.weight": 1},
    ),
    "wide.weight": Owned(
        8,
        makers=("wide.weight", "depth.weight"),
        scales=("bn3.weight", "bn4.weight"),
        vectors=("wide.bias", "bn3.weight", "bn3.bias", "bn4.weight", "bn4.bias"),
        readers={"fc1.weight": 9},
    ),
}


class PlainNet(nn.Module):
    """No normalisation, and a convolution of four groups."""

    def __init__(self):
        super().__init__()
        self.c1 = nn.Conv2d(3, 8, 3, padding=1)
        self.c2 = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.c3 = nn.Conv2d(8, 6, 3, padding=1)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.c3(F.relu(self.c2(F.relu(self.c1(x))))))
        return self.fc(x.mean((2, 3)))


class MixedNet(nn.Module):
    """One convolution whose channels a GroupNorm mixes, and one whose channels are independent."""

    def __init__(self):
        super().__init__()
        self.c1 = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.c2 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.c2(F.relu(self.norm(self.c1(x)))))
        return self.fc(x.mean((2, 3)))


class SmallerNet(ChannelNet):
    """`ChannelNet` with narrower layers."""

    def __init__(self):
        super().__init__()
        self.c1 = nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.c2 = nn.Conv2d(4, 6, 3, padding=1, bias=False)


@cache
def groups_of(kind: type[nn.Module]) -> list[ChannelGroup]:
    """The channel groups of a class of nets, found once for each class."""
    return find_channel_groups(make(kind), INPUT)
