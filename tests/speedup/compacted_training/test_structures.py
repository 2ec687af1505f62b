"""Training without dropped channels where layers read several groups, or become one group."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparseopt import CompactedTraining, RigLStruct, SparseOptimizer
from tests.speedup.compacted_training.sameness import assert_same_training
from tests.support.catalogue import build
from tests.support.channel_nets import INPUT, groups_of
from tests.support.nets import CLASSES, loss_of, make
from tests.support.training import train

STEPS = 14


class DenseBlock(nn.Module):
    """Concatenates its input and the result of its layer."""

    def __init__(self, channels, growth):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, growth, 3, padding=1)

    def forward(self, x):
        return torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)


class DenseBlocks(nn.Sequential):
    """Concatenations of concatenations, with normalisations over all of them."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1), DenseBlock(8, 4), DenseBlock(12, 6),
            nn.BatchNorm2d(18), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
            nn.Linear(18, CLASSES),
        )  # fmt: skip


class UShape(nn.Module):
    """A path down, a path up, and a connection between them."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, padding=1)
        self.bottom = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(12, 6, 2, stride=2)
        self.joined = nn.Conv2d(14, 8, 3, padding=1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x):
        down = F.relu(self.down(x))
        up = F.relu(self.up(F.relu(self.bottom(down))))
        return self.head(F.relu(self.joined(torch.cat([down, up], 1))).mean((2, 3)))


@cache
def grouped(groups, *, transposed=False):
    """Return a net with a convolution of 8 channels in groups."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d

    class Grouped(nn.Sequential):
        def __init__(self):
            super().__init__(
                nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                kind(8, 8, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES),
            )  # fmt: skip

    return Grouped


def wrapped(kind, density=0.4):
    model = make(kind, dtype=torch.float64)
    method = RigLStruct(groups=groups_of(kind))
    inner = build("SGD", model.parameters())
    return model, SparseOptimizer(
        inner, model, method=method, density=density, init={}, total_steps=40, delta_t=4,
        alpha=0.6, seed=3,
    )  # fmt: skip


@pytest.mark.parametrize("inputs", [None, INPUT.double()], ids=["found", "given"])
@pytest.mark.parametrize("kind", [DenseBlocks, UShape])
def test_concatenation_trains_as_in_the_whole_model(kind, inputs):
    expected = wrapped(kind)
    train(*expected, STEPS)
    model, optimizer = wrapped(kind)
    numel = sum(p.numel() for p in model.parameters())
    with CompactedTraining(model, optimizer, example_inputs=inputs) as training:
        train(model, optimizer, STEPS)
        assert not training.is_full
        assert sum(p.numel() for p in model.parameters()) < 0.6 * numel
    assert any(record.new > 0 for record in optimizer.history)
    assert_same_training(model, optimizer, *expected)


def test_reader_of_a_concatenation_has_the_columns_of_all_live_channels():
    model, optimizer = wrapped(UShape)
    masks = optimizer.masks
    columns = masks["joined.weight"].flatten(2).any(2).any(0)
    whole = model.joined.weight
    with CompactedTraining(model, optimizer, example_inputs=INPUT.double()):
        rows = masks["joined.weight"].flatten(1).any(1)
        assert torch.equal(model.joined.weight, whole[rows][:, columns])
        assert model.joined.in_channels == int(columns.sum())


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("groups", "density"), [(8, 0.03), (4, 0.12), (2, 0.5)])
def test_convolution_that_shrinks_to_one_group_gets_its_groups_back(groups, density, transposed):
    kind = grouped(groups, transposed=transposed)
    expected = wrapped(kind, density)
    train(*expected, STEPS)
    model, optimizer = wrapped(kind, density)
    before = [repr(module) for module in model]
    with CompactedTraining(model, optimizer, example_inputs=INPUT.double()):
        assert model[3].groups == 1
        train(model, optimizer, STEPS)
        assert model[3].groups == 1
    assert [repr(module) for module in model] == before
    assert_same_training(model, optimizer, *expected)
    with torch.no_grad():
        torch.testing.assert_close(loss_of(model.eval(), 1), loss_of(expected[0].eval(), 1))
