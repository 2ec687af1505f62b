"""Models with matrix products of their own: which channels go, and how much is multiplied."""

import copy

import pytest
import torch
from torch import nn

from sparseopt import RigLStruct, SparseOptimizer, compact, find_channel_groups
from tests.speedup.masking import optimizer_without


def plain(x, weight, bias):
    return x @ weight + bias


def added(x, weight, bias):
    return torch.addmm(bias, x, weight)


def from_the_left(x, weight, bias):
    return (weight.t().contiguous() @ x.t()).t() + bias


class Product(nn.Module):
    def __init__(self, multiply):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.weight = nn.Parameter(torch.randn(8, 100))
        self.bias = nn.Parameter(torch.zeros(100))
        self.last = nn.Linear(100, 3)
        self.multiply = multiply

    def forward(self, x):
        return self.last(self.multiply(self.first(x).relu(), self.weight, self.bias).relu())


@pytest.mark.parametrize("multiply", [plain, added, from_the_left])
def test_dropped_neuron_before_a_product_goes(multiply):
    torch.manual_seed(0)
    model = Product(multiply)
    optimizer = optimizer_without(model, {"first": [1, 3, 5]})
    nn.init.constant_(model.first.bias, -1.0)
    x = torch.randn(4, 6)
    smaller = compact(model, optimizer, example_inputs=x).model
    assert smaller.weight.shape == (5, 100)
    torch.testing.assert_close(smaller(x), model(x))


class FromTheLeft(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.middle = nn.Linear(8, 10, bias=False)
        self.last = nn.Linear(10, 3)

    def forward(self, x):
        return self.last((self.middle.weight @ self.first(x).relu().t()).t().relu())


def test_rows_and_columns_of_a_left_factor_go():
    torch.manual_seed(0)
    model = FromTheLeft()
    optimizer = optimizer_without(model, {"middle": [0, 1, 2]}, {"middle": [0, 1]})
    x = torch.randn(4, 6)
    compacted = compact(model, optimizer, example_inputs=x)
    assert compacted.model.middle.weight.shape == (7, 6)
    torch.testing.assert_close(compacted.model(x), model(x))
    for one in (model, compacted.model):
        one.zero_grad()
        one(x).sin().sum().backward()
    kept = model.middle.weight.grad[3:, 2:]
    torch.testing.assert_close(compacted.model.middle.weight.grad, kept)
    assert compacted.report.flops_ratio == (6 * 6 + 7 * 6 + 3 * 7) / (8 * 6 + 10 * 8 + 3 * 10)


@pytest.mark.parametrize("multiply", [plain, added])
def test_every_weight_is_multiplied_once_for_each_row_of_the_input(multiply):
    model = Product(multiply)
    optimizer = optimizer_without(model, {"first": [4, 5, 6, 7]})
    nn.init.constant_(model.first.bias, -1.0)
    report = compact(model, optimizer, example_inputs=torch.randn(4, 6)).report
    assert {layer.name: layer.multiplications for layer in report.layers} == {
        "first.weight": 4, "weight": 4, "last.weight": 4
    }  # fmt: skip
    assert report.flops_ratio == (24 + 400 + 300) / (48 + 800 + 300)


class ByAt(nn.Linear):
    """A layer that writes its product out, as ``FalconLinear`` of transformers does."""

    def forward(self, x):
        return x @ self.weight.T + self.bias


def test_weights_that_are_multiplied_transposed_are_in_the_report():
    model = nn.Sequential(ByAt(6, 8), nn.ReLU(), ByAt(8, 3))
    optimizer = optimizer_without(model, {"0": [4, 5, 6, 7]})
    nn.init.constant_(model[0].bias, -1.0)
    report = compact(model, optimizer, example_inputs=torch.randn(5, 4, 6)).report
    assert {layer.name: layer.multiplications for layer in report.layers} == {
        "0.weight": 20, "2.weight": 20
    }  # fmt: skip
    assert report.flops_ratio == (4 * 6 + 3 * 4) / (8 * 6 + 3 * 8)


class CrossAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x, memory):
        return self.attention(x, memory, memory, need_weights=False)[0]


def test_the_parts_of_a_weight_that_is_split_count_on_average():
    model = CrossAttention()
    inputs = (torch.randn(2, 3, 8), torch.randn(2, 9, 8))
    report = compact(model, optimizer_without(model), example_inputs=inputs).report
    times = {layer.name: layer.multiplications for layer in report.layers}
    # A third of the rows makes queries, and two thirds make keys and values.
    assert times == {
        "attention.in_proj_weight": 2 * (3 + 2 * 9) // 3,
        "attention.out_proj.weight": 6,
    }


def test_the_report_of_a_model_without_layers_whose_channels_are_known():
    model = nn.Sequential(nn.LSTM(4, 5))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = SparseOptimizer(sgd, model, method="static", sparse={nn.LSTM: True})
    report = compact(model, optimizer, example_inputs=torch.randn(3, 2, 4)).report
    assert report.left_out == ("0.weight_ih_l0", "0.weight_hh_l0")
    assert report.flops_ratio == report.possible_flops_ratio == report.share_reached == 1.0
    assert "1.0000 of dense" in str(report)


def test_every_weight_of_a_convolution_is_multiplied_once_for_each_position():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 6, 2, stride=2), nn.Conv2d(6, 5, 3, stride=2)
    )
    report = compact(model, optimizer_without(model), example_inputs=torch.randn(2, 3, 6, 6)).report
    counts = [layer.multiplications for layer in report.layers]
    assert counts == [2 * 4 * 4, 2 * 4 * 4, 2 * 3 * 3]


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.embed = nn.Conv2d(16, 16, 1)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.last = nn.Linear(16, 5)

    def forward(self, x):
        tokens = self.embed(self.stem(x)).flatten(2).transpose(1, 2)
        return self.last(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


def test_layers_before_attention_of_torch_shrink_except_its_inputs():
    torch.manual_seed(0)
    model = Attending()
    x, labels = torch.randn(4, 3, 6, 6), torch.arange(4)
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = RigLStruct(groups=find_channel_groups(model, x))
    optimizer = SparseOptimizer(
        inner, model, density=0.3, init={}, method=method, total_steps=100, delta_t=5
    )
    for _ in range(6):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    smaller = compact(model, optimizer).model
    assert smaller.stem[0].out_channels < 16
    assert smaller.embed.out_channels == 16
    for mode in (False, True):
        expected = copy.deepcopy(model).train(mode)(x)
        torch.testing.assert_close(copy.deepcopy(smaller).train(mode)(x), expected)
