"""FLOPs against the numbers that the paper prints and against counting by hand."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from tests.support import wrapping
from tests.support.nets import loss_of, make
from tests.support.published import (
    IMAGENET_FLOPS,
    IMAGENET_RATIOS,
    RESNET_MACS,
    RESNET_PARAMETERS,
    RESNET_RATIOS,
    WRN_MACS,
    WRN_PARAMETERS,
    WRN_RATIOS,
    WideResNet222,
    cifar_resnet50,
)
from tests.support.training import train

IMAGE = (1, 3, 32, 32)

wrap = partial(wrapping.wrap, density=0.1, total_steps=1000, delta_t=100)


def without_linear_bias(report, model):
    """The linear bias is one addition per output feature; the paper's totals leave it out."""
    return report.inference_dense - sum(
        m.out_features for m in model.modules() if isinstance(m, nn.Linear) and m.bias is not None
    )


def test_wrn_22_2_is_the_papers():
    model = WideResNet222()
    assert sum(p.numel() for p in model.parameters()) == WRN_PARAMETERS
    report = wrap(model).flops(model, torch.zeros(IMAGE))
    assert without_linear_bias(report, model) == 2 * WRN_MACS == 315_460_096
    assert report.train_dense == 3 * report.inference_dense


def digits(figure):
    """Half of the last digit that is printed."""
    return 0.5 * 10 ** -len(str(figure).split(".")[1]) + 1e-9


@pytest.mark.parametrize("density", [0.05, 0.1, 0.2, 0.5])
@pytest.mark.parametrize("init", ["uniform", "erk"])
def test_sparse_wrn_22_2_costs_what_the_paper_says(init, density):
    model = WideResNet222()
    report = wrap(model, init=init, density=density).flops(model, torch.zeros(IMAGE))
    expected = WRN_RATIOS[init][density]
    assert report.inference_ratio == pytest.approx(expected, abs=digits(expected))
    assert report.inference_ratio == report.inference_sparse / report.inference_dense


@pytest.mark.parametrize("density", [0.1, 0.2])
def test_erk_leaves_the_papers_layers_of_wrn_22_2_dense(density):
    """The first convolution, the last layer, and the shortcuts; the third at .2 only."""
    optimizer = wrap(WideResNet222(), init="erk", density=density)
    shortcuts = ["blocks.0.shortcut.weight", "blocks.3.shortcut.weight", "blocks.6.shortcut.weight"]
    expected = {"conv1.weight", "fc.weight", *shortcuts[: 2 if density == 0.1 else 3]}
    assert {layer.name for layer in optimizer.layers if layer.is_dense} == expected


@pytest.fixture(scope="module")
def resnet50():
    pytest.importorskip("torchvision")
    return cifar_resnet50()


@pytest.mark.filterwarnings("ignore:the model was sparse before")
@pytest.mark.parametrize(
    ("density", "dense_layers"), [(0.05, None), (0.1, 2), (0.2, 9), (0.5, None)]
)
@pytest.mark.parametrize("init", ["uniform", "erk"])
def test_sparse_resnet50_costs_what_the_paper_says(resnet50, init, density, dense_layers):
    assert sum(p.numel() for p in resnet50.parameters()) == RESNET_PARAMETERS
    optimizer = wrap(resnet50, init=init, density=density)
    report = optimizer.flops(resnet50, torch.zeros(IMAGE))
    assert without_linear_bias(report, resnet50) == 2 * RESNET_MACS == 2_596_028_416
    expected = RESNET_RATIOS[init][density]
    assert report.inference_ratio == pytest.approx(expected, abs=digits(expected))
    full = sum(layer.live == layer.numel for layer in optimizer.layers)
    if init == "uniform":
        assert full == 1
    elif dense_layers is not None:
        assert full == dense_layers


@pytest.mark.filterwarnings("ignore:the model was sparse before:UserWarning")
@pytest.mark.slow
def test_resnet50_on_imagenet_costs_what_was_computed_by_hand():
    """Evci et al. 2020 print .23, .10 (without the dense first layer), .42 and .24."""
    models = pytest.importorskip("torchvision.models")
    model = models.resnet50()
    x = torch.zeros(1, 3, 224, 224)
    for (init, density), expected in IMAGENET_RATIOS.items():
        # Costs come from the masks, so the weights need not be new each time.
        optimizer = wrap(model, init=init, density=density)
        report = optimizer.flops(model, x)
        optimizer.detach()
        assert without_linear_bias(report, model) == IMAGENET_FLOPS
        assert report.inference_ratio == pytest.approx(expected, abs=digits(expected))


@pytest.mark.parametrize(("init", "expected"), [("uniform", 0.205), ("erk", 0.354)])
def test_training_wrn_22_2_by_rigl_costs_what_the_formula_says(init, expected):
    model = WideResNet222()
    optimizer = wrap(model, init=init, density=0.2, delta_t=100)
    report = optimizer.flops(model, torch.zeros(IMAGE))
    assert report.train_ratio == pytest.approx(expected, abs=0.0005)
    f_s, f_d = report.inference_sparse, report.inference_dense
    assert report.train_sparse == pytest.approx((3 * 100 * f_s + 2 * f_s + f_d) / 101)
    assert report.train_measured == pytest.approx(report.train_sparse)


@pytest.mark.parametrize("method", ["static", "set"])
def test_methods_without_dense_gradients_train_at_three_times_inference(method):
    model = WideResNet222()
    report = wrap(model, method=method, density=0.1).flops(model, torch.zeros(IMAGE))
    assert report.train_sparse == pytest.approx(3 * report.inference_sparse)
    assert report.train_ratio == pytest.approx(report.inference_ratio)


def test_measured_training_of_rigl_counts_the_update_steps_that_were():
    """Ordinary steps cost 3 f_s, an update step 2 f_s for activations and f_d for the gradient."""
    model = make()
    optimizer = wrap(model, density=0.2, delta_t=4, total_steps=40)
    train(model, optimizer, 40)
    report = optimizer.flops()
    f_s, f_d = report.inference_sparse, report.inference_dense
    updates = len(optimizer.history)
    assert updates == 7
    expected = ((40 - updates) * 3 * f_s + updates * (2 * f_s + f_d)) / 40
    assert report.train_measured == pytest.approx(expected)
    assert report.train_measured_ratio == pytest.approx(expected / report.train_dense)


def test_measured_training_of_pruning_integrates_the_density_that_was():
    model = make()
    optimizer = wrap(model, method="pruning", density=0.2, delta_t=4, total_steps=40)
    x = torch.zeros(1, 3, 6, 6)
    costs = []

    def note(_):
        costs.append(3 * optimizer.flops(model, x).inference_sparse)

    start = 3 * optimizer.flops(model, x).inference_sparse
    train(model, optimizer, 40, after=note)
    during = [start, *costs[:-1]]
    report = optimizer.flops(model, x)
    assert report.train_measured == pytest.approx(sum(during) / 40, rel=0.02)
    assert report.inference_sparse < 0.5 * report.inference_dense
    assert report.train_measured > 3 * report.inference_sparse


def test_small_net_counted_by_hand():
    model = make()
    optimizer = wrap(model, init="uniform", density=0.25)
    report = optimizer.flops(model, torch.zeros(1, 3, 6, 6))
    positions = {"conv1.weight": 36, "conv2.weight": 9, "fc1.weight": 1, "fc2.weight": 1}
    dense = sum(2 * p.numel() * positions[n] for n, p in model.named_parameters() if p.ndim > 1)
    sparse = sum(2 * layer.live * positions[layer.name] for layer in optimizer.layers)
    linear_biases = 16 + 5
    assert report.inference_dense == dense + linear_biases
    assert report.inference_sparse == sparse + linear_biases


def test_figures_are_per_sample():
    model = WideResNet222()
    optimizer = wrap(model)
    one = optimizer.flops(model, torch.zeros(IMAGE))
    three = optimizer.flops(model, torch.zeros(3, 3, 32, 32))
    assert one.inference_dense == three.inference_dense
    assert one.inference_sparse == three.inference_sparse


def test_flops_without_arguments_uses_the_shapes_of_training():
    model = make()
    optimizer = wrap(model, density=0.2)
    train(model, optimizer, 1)
    remembered = optimizer.flops()
    asked = optimizer.flops(model, torch.zeros(1, 3, 6, 6))
    assert remembered.inference_dense == asked.inference_dense
    assert remembered.inference_sparse == asked.inference_sparse


def test_flops_before_any_input_says_what_to_pass():
    with pytest.raises((RuntimeError, ValueError), match="(?i)(input|forward|step)"):
        wrap(make()).flops()


def test_activity_comes_from_the_mask_not_from_the_values():
    """A weight that has just grown is zero, and counts."""
    model = make()
    optimizer = wrap(model, density=0.2)
    before = optimizer.flops(model, torch.zeros(1, 3, 6, 6))
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    after = optimizer.flops(model, torch.zeros(1, 3, 6, 6))
    assert before.inference_sparse == after.inference_sparse


def test_probe_leaves_no_trace():
    """Mode, random state, statistics, gradients and hooks do not change."""
    model = WideResNet222()
    optimizer = wrap(model)
    model.train()
    model.blocks[0].eval()
    modes = [m.training for m in model.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    buffers = copy.deepcopy(dict(model.named_buffers()))
    rng = torch.get_rng_state()
    for _ in range(3):
        optimizer.flops(model, torch.randn(IMAGE, generator=torch.Generator().manual_seed(1)))
    assert [m.training for m in model.modules()] == modes
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(p.grad is None for p in model.parameters())


def test_watching_the_first_input_does_not_change_training():
    """The one-shot hook on the root is gone after the first forward."""
    model = make()
    optimizer = wrap(model)
    loss_of(model, 1).backward()
    optimizer.step()
    assert all(not m._forward_pre_hooks and not m._forward_hooks for m in model.modules())


def test_unusual_layers_are_counted_right():
    """Grouped, dilated, strided, non-square and transposed convolutions; a module used twice."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.grouped = nn.Conv2d(4, 8, (3, 1), stride=2, groups=2, bias=False)
            self.dilated = nn.Conv2d(8, 8, 3, dilation=2, padding=2, bias=False)
            self.up = nn.ConvTranspose2d(8, 4, 2, stride=2, bias=False)
            self.twice = nn.Linear(4, 4, bias=False)

        def forward(self, x):
            x = self.up(self.dilated(self.grouped(x)))
            return self.twice(self.twice(x.mean((2, 3))))

    model = Odd()
    optimizer = wrap(model, density=1.0)
    report = optimizer.flops(model, torch.zeros(2, 4, 9, 9))
    grouped = 2 * 8 * 2 * 3 * 1 * (4 * 5)
    dilated = 2 * 8 * 8 * 9 * (4 * 5)
    up = 2 * 8 * 4 * 4 * (4 * 5)
    twice = 2 * 2 * 16
    assert report.inference_dense == grouped + dilated + up + twice
    assert report.inference_sparse == report.inference_dense
