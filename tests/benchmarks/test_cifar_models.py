import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cifar.models import WideResNet


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def flops(model):
    """torch's own counter is independent of this project."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops()


def test_wrn_22_2_is_the_reports():
    model = WideResNet(depth=22, width=2, dropout=0.3, num_classes=10)
    assert parameters(model) == 1_079_642
    assert flops(model) == 2 * 157_730_048


def test_wrn_22_2_has_the_layers_that_erk_can_make_dense():
    convolutions = [m for m in WideResNet(22, 2).modules() if isinstance(m, torch.nn.Conv2d)]
    shortcuts = [m for m in convolutions if m.kernel_size == (1, 1)]
    assert len(convolutions) == 1 + 9 * 2 + 3
    assert [(m.in_channels, m.out_channels) for m in shortcuts] == [(16, 32), (32, 64), (64, 128)]


@pytest.mark.parametrize("density", [0.1, 0.2, 0.5])
def test_small_dense_scales_every_width_and_about_keeps_the_density(density):
    full = WideResNet(22, 2)
    small = WideResNet(22, 2, width_scale=math.sqrt(density))
    for wide, narrow in zip(full.modules(), small.modules(), strict=True):
        if isinstance(wide, torch.nn.Conv2d):
            if wide is not full.stem:
                assert narrow.in_channels == round(wide.in_channels * math.sqrt(density))
            assert narrow.out_channels == round(wide.out_channels * math.sqrt(density))
    assert small.stem.in_channels == 3
    assert small.head.out_features == 10
    assert parameters(small) / parameters(full) == pytest.approx(density, rel=0.06)


def test_dropout_is_active_in_training_only():
    torch.manual_seed(0)
    model = WideResNet(10, 1, dropout=0.3)
    images = torch.randn(4, 3, 32, 32)
    model.eval()
    assert torch.equal(model(images), model(images))
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    assert not torch.equal(model(images), model(images))


def test_first_block_computes_what_the_paper_draws():
    torch.manual_seed(0)
    block = WideResNet(10, 1, num_classes=10).groups[1][0].eval()
    x = torch.randn(2, 16, 32, 32)
    activated = F.relu(block.norm1(x))
    hidden = F.conv2d(activated, block.conv1.weight, stride=2, padding=1)
    expected = F.conv2d(F.relu(block.norm2(hidden)), block.conv2.weight, padding=1)
    expected = expected + F.conv2d(activated, block.shortcut.weight, stride=2)
    torch.testing.assert_close(block(x), expected)


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_gradients_of_odd_widths_and_batches_are_right_in_channels_last():
    # A 1x1 convolution with a stride would write past its memory here, and mostly crash.
    torch.manual_seed(0)
    model = WideResNet(10, 2, width_scale=math.sqrt(0.1))
    exact = WideResNet(10, 2, width_scale=math.sqrt(0.1)).double()
    exact.load_state_dict(model.state_dict())
    model = model.to(memory_format=torch.channels_last)
    images = torch.randn(15, 3, 32, 32)
    for _ in range(3):
        model.zero_grad()
        model(images.contiguous(memory_format=torch.channels_last)).square().sum().backward()
    exact(images.double()).square().sum().backward()
    for parameter, reference in zip(model.parameters(), exact.parameters(), strict=True):
        error = (parameter.grad.double() - reference.grad).abs().max()
        assert error < 1e-2 * reference.grad.abs().max()


def test_depth_that_does_not_exist_is_refused_by_name():
    with pytest.raises(ValueError, match=r"depth must be 6 n \+ 4 .* got 12"):
        WideResNet(depth=12)
