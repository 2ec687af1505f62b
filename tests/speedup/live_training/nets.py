"""Models with every kind of module that a speed-up exchanges, and plans that exchange all of it."""

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import densenet

from sparseopt import SparseOptimizer, speed_up
from sparseopt.speedup.live_training.possible import (
    candidates,
    exchangeable_layers,
)
from tests.support.wrapping import settings_with

CLASSES = 5


class Block(nn.Module):
    """A residual block: normalisation, ReLU in place, dropout, and a shortcut of one pixel."""

    def __init__(self, channels, out, stride, p=0.0, **norm):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels, **norm)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out, **norm)
        self.drop = nn.Dropout(p)
        self.conv2 = nn.Conv2d(out, out, 3, padding="same")
        self.shortcut = nn.Conv2d(channels, out, 1, stride)

    def forward(self, x):
        y = F.relu(self.norm1(x), inplace=True)
        z = F.relu(self.norm2(self.conv1(y)), inplace=True)
        return self.shortcut(y) + self.conv2(self.drop(z))


class ConvNet(nn.Module):
    """Convolutions of all kinds, concatenation, pooling of all kinds, a linear head."""

    def __init__(self, p=0.0, **norm):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block = Block(8, 12, 2, p, **norm)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=4)
        self.dilated = nn.Conv2d(12, 10, (3, 1), padding=(2, 0), dilation=(2, 1))
        self.norm = nn.BatchNorm2d(22, **norm)
        self.max = nn.MaxPool2d(3, 1, 1)
        self.mean = nn.AvgPool2d(2)
        self.last = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Linear(22, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x):
        x = self.block(self.stem(x))
        x = torch.cat([self.grouped(x), self.dilated(x)], 1)
        x = self.mean(self.max(F.relu(self.norm(x))))
        return self.head(F.relu(self.hidden(self.last(x).flatten(1))))


class Tokens(nn.Module):
    """Linear layers on (N, T, C), with a residual connection."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(16, 48)
        self.down = nn.Linear(48, 16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x):
        x = x.flatten(2).mT.repeat(1, 1, 6)[..., :16]
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(x).mean(1)


class DenseLayer(nn.Module):
    """Normalisation, ReLU, convolution; the result is concatenated to the input."""

    def __init__(self, channels, growth, p=0.0):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, growth, 3, padding=1, bias=False)
        self.drop = nn.Dropout(p)

    def forward(self, x):
        return torch.cat([x, self.drop(self.conv(F.relu(self.norm(x))))], dim=1)


class DenseNet(nn.Module):
    """Every layer reads all earlier ones; the numbers of channels are odd."""

    def __init__(self, p=0.0):
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 3, padding=1)
        self.dense1 = nn.Sequential(*(DenseLayer(7 + 5 * i, 5, p) for i in range(3)))
        self.norm1, self.relu = nn.BatchNorm2d(22), nn.ReLU(inplace=True)
        self.narrow, self.mean = nn.Conv2d(22, 11, 1), nn.AvgPool2d(2)
        self.dense2 = nn.Sequential(*(DenseLayer(11 + 5 * i, 5, p) for i in range(2)))
        self.norm2 = nn.BatchNorm2d(21)
        self.last, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(21, CLASSES)

    def forward(self, x):
        x = self.dense1(self.stem(x))
        x = self.dense2(self.mean(self.narrow(self.relu(self.norm1(x)))))
        return self.head(self.last(F.relu(self.norm2(x))).flatten(1))


class TorchvisionDenseNet(densenet.DenseNet):
    """densenet121 with fewer layers and channels."""

    def __init__(self, p=0.0, memory_efficient=False):
        super().__init__(
            growth_rate=6,
            block_config=(2, 3),
            num_init_features=10,
            bn_size=2,
            drop_rate=p,
            num_classes=CLASSES,
            memory_efficient=memory_efficient,
        )


def images(index=0, size=6, side=9, dtype=torch.float32):
    generator = torch.Generator().manual_seed(index)
    return torch.randn(size, 3, side, side, generator=generator).to(dtype)


def labels(index=0, size=6):
    return torch.randint(0, CLASSES, (size,), generator=torch.Generator().manual_seed(index))


def loss_of(model, index=0, size=6, side=9):
    dtype = next(model.parameters()).dtype
    return F.cross_entropy(model(images(index, size, side, dtype)).float(), labels(index, size))


def make(kind=ConvNet, seed=0, **settings):
    torch.manual_seed(seed)
    return kind(**settings)


def wrap(model, **changes):
    """A sparse optimizer whose masks move at steps 5, 10, ..., 25."""
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return SparseOptimizer(sgd, model, **settings_with(**changes))


def full_plan(model, optimizer, x=None):
    """A plan in which every layer that can be exchanged is, for one shape of input."""
    x = images() if x is None else x
    layer_of = {layer.weight: layer for layer in optimizer.layers}
    plan = {}

    def note(name, module):
        def hook(module, inputs):
            shape = "x".join(map(str, inputs[0].shape))
            possible = candidates(module, layer_of.get(module.weight))
            order = ("live", "full", "product", "converted", "dense")
            plan.setdefault(name, {})[shape] = next(one for one in order if one in possible)

        return module.register_forward_pre_hook(hook)

    handles = [note(name, module) for name, module in exchangeable_layers(model).items()]
    training = model.training
    with torch.no_grad():
        model.eval()(x)
    model.train(training)
    for handle in handles:
        handle.remove()
    return plan


def sped_up(kind=ConvNet, **changes):
    """A model and its optimizer, with every layer exchanged that can be."""
    model = make(kind)
    optimizer = wrap(model, **changes)
    speed_up(model, optimizer, plan=full_plan(model, optimizer))
    return model, optimizer


def train(model, optimizer, steps, start=0, loss=loss_of):
    """Steps `start + 1` to `start + steps`; returns the losses."""
    losses = []
    for index in range(start + 1, start + steps + 1):
        optimizer.zero_grad()
        one = loss(model, index)
        one.backward()
        optimizer.step()
        losses.append(float(one.detach()))
    return losses
