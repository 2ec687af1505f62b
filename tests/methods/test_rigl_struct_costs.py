"""How many channels there are, and that live weights are what a smaller model would cost."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparseopt import RigLStruct, SparseOptimizer, TrainingCost, compact, find_channel_groups
from tests.support import wrapping
from tests.support.channel_nets import INPUT, ChannelNet
from tests.support.nets import make
from tests.support.published import WideResNet222
from tests.support.training import train


class Residual(nn.Module):
    """Any widths: of the residual stream, inside the block, and of the last convolution."""

    def __init__(self, stream, inside, last):
        super().__init__()
        self.stem = nn.Conv2d(3, stream, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(stream)
        self.c1 = nn.Conv2d(stream, inside, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inside)
        self.c2 = nn.Conv2d(inside, stream, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(stream)
        self.last = nn.Conv2d(stream, last, 3, stride=2, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(last)
        self.depth = nn.Conv2d(last, last, 3, padding=1, groups=last, bias=False)
        self.fc = nn.Linear(last * 9, 5)

    def forward(self, x):
        x = F.relu(self.bn0(self.stem(x)))
        x = F.relu(x + self.bn2(self.c2(F.relu(self.bn1(self.c1(x))))))
        return self.fc(self.depth(F.relu(self.bn3(self.last(x)))).flatten(1))


def wrap(model, **settings):
    method = RigLStruct(groups=find_channel_groups(model, INPUT))
    return wrapping.wrap(model, method=method, **{"delta_t": 4, "seed": 1, **settings})


def widths(optimizer):
    """The widths that would be left: of the stream, inside the block, of the last convolution."""
    live = {
        name: mask.flatten(1).any(1).sum()
        for name, mask in optimizer.masks.items()
        if mask.dim() > 1
    }
    return tuple(int(live[name]) for name in ("stem.weight", "c1.weight", "last.weight"))


def conv_weights(stream, inside, last):
    return 9 * (3 * stream + 2 * stream * inside + stream * last + last)


@pytest.mark.parametrize("density", [0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("init", ["uniform", "erk", "er"])
def test_channel_counts_are_the_largest_that_the_density_allows(init, density):
    """The convolutions that would be left have at most that share of weights, and nearly that."""
    optimizer = wrap(Residual(16, 24, 32), init=init, density=density)
    left = conv_weights(*widths(optimizer))
    assert left == sum(layer.live for layer in optimizer.layers if layer.weight.dim() == 4)
    share = left / conv_weights(16, 24, 32)
    assert 0.85 * density < share <= density


def test_uniform_gives_all_channels_but_those_of_the_first_layer_the_same_share():
    optimizer = wrap(Residual(40, 40, 40), init="uniform", density=0.25)
    stream, inside, last = widths(optimizer)
    assert inside == last < stream


def test_mapping_gives_the_root_of_each_density_and_is_not_scaled():
    optimizer = wrap(
        Residual(16, 24, 32),
        init={"stem": 0.25, "c2": 0.25, "c1": 1.0, "last": 0.0625},
        density=0.25,
    )
    # The last convolution and the depthwise one, of density .25, make the same channels.
    mean = (16 * 32 * 9 * 0.0625 + 32 * 9 * 0.25) / (16 * 32 * 9 + 32 * 9)
    assert widths(optimizer) == (8, 24, int(32 * mean**0.5 + 0.5))


def test_counted_flops_are_the_cost_of_the_smaller_model():
    model = Residual(16, 24, 32)
    optimizer = wrap(model, density=0.2)
    report = optimizer.flops(model, INPUT)
    small = Residual(*widths(optimizer))
    plain = SparseOptimizer(
        torch.optim.SGD(small.parameters(), lr=0.1), small, method="static", density=1.0
    ).flops(small, INPUT)
    assert report.inference_sparse == plain.inference_dense
    dense = Residual(16, 24, 32)
    whole = SparseOptimizer(
        torch.optim.SGD(dense.parameters(), lr=0.1), dense, method="static", density=1.0
    ).flops(dense, INPUT)
    assert report.inference_dense == whole.inference_dense


def test_compaction_after_training_leaves_exactly_the_live_channels():
    """The compacted model computes the same, and has exactly the counted weights."""
    model = Residual(16, 24, 32)
    optimizer = wrap(model, density=0.2)
    train(model, optimizer, 40)
    assert max(record.new for record in optimizer.history) > 0
    small = compact(model, optimizer, example_inputs=INPUT).model
    expected = Residual(*widths(optimizer))
    shapes = {name: p.shape for name, p in expected.named_parameters()}
    assert {name: p.shape for name, p in small.named_parameters()} == shapes
    x = torch.randn(8, 3, 6, 6)
    for net in (model, small):
        net.eval()
    torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-5)


def test_update_step_costs_what_a_dense_one_does():
    """All channels are computed there, forward and backward."""
    method = RigLStruct()
    assert method.train_flops(TrainingCost(1.0, 0.1, 0.1, 4)) == pytest.approx((4 * 0.3 + 3) / 5)
    model = make(ChannelNet)
    optimizer = wrap(model, density=0.3)
    before = optimizer.flops(model, INPUT)
    train(model, optimizer, 40)
    after = optimizer.flops()
    updates = len(optimizer.history)
    expected = 40 * 3 * before.inference_sparse
    expected += updates * 3 * (before.inference_dense - before.inference_sparse)
    assert after.train_so_far == pytest.approx(expected)
    assert before.train_expected == pytest.approx(expected)


def test_table_of_the_documentation():
    """WRN-22-2 on CIFAR-10 at density .1, ERK, before the first step."""
    model = WideResNet222()
    x = torch.zeros(2, 3, 32, 32)
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model,
        method=RigLStruct(groups=find_channel_groups(model, x)),
        density=0.1,
        total_steps=88_000,
    )
    assert optimizer.flops(model, x).train_ratio == pytest.approx(0.188, abs=6e-4)


def test_summary_lists_the_vectors_that_channels_own():
    optimizer = wrap(Residual(16, 24, 32), density=0.2)
    assert "bn1.bias" in optimizer.summary()
