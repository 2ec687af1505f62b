import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cifar.accounting import matched_density
from benchmarks.cifar.config import load_preset
from benchmarks.cifar.models import ResNet
from sparseopt import SparseOptimizer, count_flops

IMAGE = torch.zeros(1, 3, 32, 32)


@pytest.fixture(scope="module")
def model():
    return ResNet(depth=50, width=64, num_classes=100)


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_resnet_50_is_the_reports(model):
    assert parameters(model) == 23_705_252
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(IMAGE)
    assert counter.get_total_flops() == 2 * 1_298_014_208
    # The published 2.59e9 is cut off and not rounded; a bias is an addition.
    assert count_flops(model, IMAGE).inference_dense == 2_596_028_416 + 100


@pytest.mark.filterwarnings("ignore:the model was sparse before:UserWarning")
@pytest.mark.parametrize(
    ("init", "density", "published"),
    [
        *[("uniform", d, r) for d, r in ((0.05, 0.0513), (0.1, 0.1012), (0.2, 0.2011))],
        *[("erk", d, r) for d, r in ((0.05, 0.114), (0.1, 0.225), (0.2, 0.385))],
    ],
)
def test_sparse_inference_costs_what_the_report_says(model, init, density, published):
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    counter = SparseOptimizer(plain, model, method="static", density=density, init=init, seed=0)
    ratio = counter.flops(model, IMAGE).inference_ratio
    counter.detach()
    assert ratio == pytest.approx(published, abs=0.0006)


def test_uniform_can_be_as_expensive_as_erk():
    for preset, erk in (("paper", 0.174), ("paper-cifar100", 0.225)):
        protocol = load_preset(preset)
        # Uniform costs about its density, and a little more for its dense first layer.
        density = matched_density(protocol, "erk", "uniform", 0.1)
        assert density == pytest.approx(erk, abs=0.003)
        assert matched_density(protocol, "erk", "erk", 0.1) == 0.1


def test_small_dense_scales_every_width(model):
    small = ResNet(50, 64, 100, width_scale=math.sqrt(0.1))
    for wide, narrow in zip(model.modules(), small.modules(), strict=True):
        if isinstance(wide, torch.nn.Conv2d):
            assert narrow.out_channels == round(wide.out_channels * math.sqrt(0.1))
    assert parameters(small) / parameters(model) == pytest.approx(0.1, rel=0.06)


def test_first_block_of_a_group_computes_what_the_paper_draws():
    torch.manual_seed(0)
    block = ResNet(14, 4, num_classes=10).groups[1][0].eval()
    x = torch.randn(2, 16, 32, 32)
    out = F.relu(block.norm1(F.conv2d(x, block.conv1.weight)))
    out = F.relu(block.norm2(F.conv2d(out, block.conv2.weight, stride=2, padding=1)))
    out = block.norm3(F.conv2d(out, block.conv3.weight))
    shortcut = block.shortcut_norm(F.conv2d(x, block.shortcut.weight, stride=2))
    torch.testing.assert_close(block(x), F.relu(out + shortcut))
