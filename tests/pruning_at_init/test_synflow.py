"""SynFlow against NumPy, and the properties that its paper proves."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from sparseopt import synflow
from sparseopt.pruning_at_init.synflow import synaptic_flow


def relu_net(*sizes, bias=True, seed=5):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(a, b, bias=bias) for a, b in pairwise(sizes)]
    modules = [module for layer in layers for module in (layer, nn.ReLU())]
    return nn.Sequential(*modules[:-1])


def linear_layers(net):
    return [module for module in net if isinstance(module, nn.Linear)]


def flow_in_numpy(net, masks):
    """Scores of each weight and the sum of the outputs, for magnitudes and an input of ones."""
    weights, acts = [], [np.ones(net[0].in_features)]
    for layer, mask in zip(linear_layers(net), masks, strict=True):
        weights.append(np.abs(layer.weight.detach().double().numpy()) * mask)
        shift = 0.0 if layer.bias is None else np.abs(layer.bias.detach().double().numpy())
        acts.append(weights[-1] @ acts[-1] + shift)
    upstream, scores = np.ones(weights[-1].shape[0]), []
    for weight, act in zip(weights[::-1], acts[-2::-1], strict=True):
        scores.insert(0, np.outer(upstream, act) * weight)
        upstream = weight.T @ upstream
    return scores, acts[-1].sum()


def synflow_in_numpy(net, density, rounds):
    masks = [np.ones(tuple(layer.weight.shape), dtype=bool) for layer in linear_layers(net)]
    numel = sum(mask.size for mask in masks)
    final = round(density * numel)
    for k in range(1, rounds + 1):
        live = round(numel * (final / numel) ** (k / rounds))
        scores, _ = flow_in_numpy(net, masks)
        ranked = []
        for score, mask in zip(scores, masks, strict=True):
            flat = np.where(mask, score, -np.inf).ravel()
            flat[np.argmax(flat)] = np.inf
            ranked.append(flat)
        order = np.argsort(-np.concatenate(ranked), kind="stable")[:live]
        chosen = np.zeros(numel, dtype=bool)
        chosen[order] = True
        parts = np.split(chosen, np.cumsum([mask.size for mask in masks])[:-1])
        masks = [part.reshape(mask.shape) for part, mask in zip(parts, masks, strict=True)]
    return masks


@pytest.mark.parametrize("rounds", [1, 7, 100])
@pytest.mark.parametrize("density", [0.02, 0.3])
def test_masks_are_those_of_numpy(rounds, density):
    net = relu_net(7, 11, 9, 5)
    masks = synflow(net, (1, 7), density=density, rounds=rounds)
    expected = synflow_in_numpy(net, density, rounds)
    for mask, want in zip(masks.values(), expected, strict=True):
        np.testing.assert_array_equal(mask.numpy(), want)


def test_synflow_scores_a_hundred_times_by_default():
    net = relu_net(7, 11, 9, 5)
    expected = synflow(net, (1, 7), density=0.05, rounds=100)
    other = synflow(net, (1, 7), density=0.05, rounds=1)
    masks = synflow(net, (1, 7), density=0.05)
    assert all(torch.equal(masks[name], expected[name]) for name in masks)
    assert any(not torch.equal(masks[name], other[name]) for name in masks)


def test_signs_of_weights_and_values_of_the_input_do_not_matter():
    net = relu_net(7, 11, 5)
    expected = synflow(net, (1, 7), density=0.2)
    masks = synflow(net, torch.randn(1, 7), density=0.2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.neg_()
    flipped = synflow(net, (1, 7), density=0.2)
    for name, mask in expected.items():
        assert torch.equal(masks[name], mask)
        assert torch.equal(flipped[name], mask)


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2, bias=False)
        self.fc = nn.Linear(8, 4, bias=False)

    def forward(self, x):
        x = torch.relu(self.conv2(torch.relu(self.conv1(x))))
        return self.fc(x.mean((2, 3)))


def test_every_layer_carries_the_whole_flow():
    """Theorem 2 (network-wise conservation): scores of a layer add up to the output for |w|."""
    net = ConvNet()
    masks = synflow(net, (1, 3, 8, 8), density=0.2)
    scores = synaptic_flow(net, torch.ones(1, 3, 8, 8, dtype=torch.float64), masks)
    magnitudes = ConvNet().double()
    with torch.no_grad():
        for (name, theirs), mine in zip(
            magnitudes.named_parameters(), net.parameters(), strict=True
        ):
            theirs.copy_(torch.where(masks[name], mine.abs().double(), 0.0))
    flow = magnitudes(torch.ones(1, 3, 8, 8, dtype=torch.float64)).sum().item()
    assert flow > 0
    for name, score in scores.items():
        assert score.sum().item() == pytest.approx(flow), name


def test_flow_into_a_neuron_equals_the_flow_out_of_it():
    """Theorem 1 (neuron-wise conservation)."""
    net = relu_net(7, 11, 5, bias=False)
    masks = synflow(net, (1, 7), density=0.4)
    first, second = synaptic_flow(net, torch.ones(1, 7, dtype=torch.float64), masks).values()
    torch.testing.assert_close(first.sum(1), second.sum(0))


@pytest.mark.parametrize("live", [3, 6, 20])
def test_layers_do_not_collapse_while_there_is_a_weight_for_each(live):
    """Every live weight is on a path from input to output (maximal critical compression)."""
    net = relu_net(100, 100, 3, 100, bias=False)
    numel = 100 * 100 + 300 + 300
    ones = torch.ones(1, 100, dtype=torch.float64)
    masks = synflow(net, (1, 100), density=live / numel)
    assert sum(int(mask.sum()) for mask in masks.values()) == live
    scores = synaptic_flow(net, ones, masks)
    assert all(torch.equal(scores[name] > 0, masks[name]) for name in masks)


def test_normalisation_scales_by_its_running_statistics():
    """In eval mode it is a factor for each channel, so it can be folded into the next layer."""
    net = nn.Sequential(nn.Linear(7, 11, bias=False), nn.BatchNorm1d(11), nn.Linear(11, 5))
    with torch.no_grad():
        net[1].running_var.uniform_(0.1, 3.0)
        net[1].weight.uniform_(-2.0, 2.0)
    masks = synflow(net, (1, 7), density=0.3)
    folded = nn.Sequential(nn.Linear(7, 11, bias=False), nn.Linear(11, 5))
    scale = net[1].weight / (net[1].running_var + net[1].eps).sqrt()
    with torch.no_grad():
        folded[0].weight.copy_(net[0].weight)
        folded[1].weight.copy_(net[2].weight * scale)
        folded[1].bias.copy_(net[2].bias)
    expected = synflow(folded, (1, 7), density=0.3)
    assert torch.equal(masks["0.weight"], expected["0.weight"])
    assert torch.equal(masks["2.weight"], expected["1.weight"])


def test_flow_beyond_single_precision_is_no_problem():
    net = relu_net(*([32] * 12), bias=False)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1e6)
    masks = synflow(net, (1, 32), density=0.1, rounds=5)
    scaled_back = synflow(relu_net(*([32] * 12), bias=False), (1, 32), density=0.1, rounds=5)
    agree = [float((masks[name] == scaled_back[name]).float().mean()) for name in masks]
    assert min(agree) == 1.0


class InSinglePrecision(nn.Sequential):
    """Casts to float32 inside, as models for mixed precision do."""

    def forward(self, x):
        for module in self:
            x = module(x).float()
        return x


@pytest.mark.parametrize("rounds", [1, 7])
def test_model_that_casts_to_single_precision_is_scored_in_it(rounds):
    net = relu_net(7, 11, 9, 5)
    masks = synflow(InSinglePrecision(*net), (1, 7), density=0.3, rounds=rounds)
    expected = synflow_in_numpy(net, 0.3, rounds)
    for mask, want in zip(masks.values(), expected, strict=True):
        np.testing.assert_array_equal(mask.numpy(), want)


def test_flow_beyond_single_precision_is_refused_in_a_model_that_casts_to_it():
    net = InSinglePrecision(*relu_net(*([32] * 12), bias=False))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1e6)
    with pytest.raises(ValueError, match=r"range of torch\.float32"):
        synflow(net, (1, 32), density=0.1, rounds=5)


def test_error_of_a_model_that_runs_in_no_precision_is_raised():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        synflow(relu_net(7, 11, 5), (1, 8))


@pytest.mark.parametrize(
    ("inputs", "error"),
    [
        (torch.zeros(1, 7, dtype=torch.long), TypeError),
        ((), ValueError),
        ((1, 0), ValueError),
        ("ab", TypeError),
        (7, TypeError),
    ],
)
def test_inputs_of_other_kinds_are_refused(inputs, error):
    with pytest.raises(error, match="inputs"):
        synflow(relu_net(7, 5), inputs)


@pytest.mark.parametrize("rounds", [0, 1.5])
def test_rounds_are_a_whole_number(rounds):
    with pytest.raises((TypeError, ValueError), match="rounds"):
        synflow(relu_net(7, 5), (1, 7), rounds=rounds)
