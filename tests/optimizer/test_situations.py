"""Situations from the issues of other libraries: see `docs/results/situations.md`."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparseopt import SparseOptimizer
from tests.support.looking import assert_dropped_are_fresh


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)
    )


def steps_of(model, optimizer, steps, shape=(64, 20), dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        inputs = torch.randn(shape, generator=generator).to(dtype)
        labels = torch.randint(5, shape[:1], generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs).float(), labels).backward()
        optimizer.step()


def momentum(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def test_sparse_model_is_pruned_further_and_no_zero_comes_back():
    model = network()
    first = SparseOptimizer(momentum(model), model, method="static", density=0.3)
    steps_of(model, first, 5)
    zero = {layer.name: layer.weight.detach() == 0 for layer in first.layers}
    optimizer = SparseOptimizer(
        momentum(model),
        model,
        method="pruning",
        mask="nonzero",
        density=0.1,
        total_steps=60,
        delta_t=4,
    )
    assert optimizer.density == pytest.approx(0.3, abs=0.01)
    steps_of(model, optimizer, 60)
    assert optimizer.density == pytest.approx(0.1, abs=0.002)
    for layer in optimizer.layers:
        assert not layer.weight[zero[layer.name]].any()
    assert_dropped_are_fresh(optimizer)


def test_matrices_of_an_lstm_train_under_masks_and_go_on_without():
    torch.manual_seed(0)
    model = nn.LSTM(20, 32)
    optimizer = SparseOptimizer(
        torch.optim.Adam(model.named_parameters()),
        method="set",
        density=0.2,
        total_steps=100,
        delta_t=4,
    )
    assert list(optimizer.masks) == ["weight_ih_l0", "weight_hh_l0"]
    before = model.weight_hh_l0.detach().clone()
    for _ in range(10):
        optimizer.zero_grad()
        model(torch.randn(5, 3, 20))[0].square().mean().backward()
        optimizer.step()
    assert_dropped_are_fresh(optimizer)
    live = optimizer.masks["weight_hh_l0"] & (before != 0)
    assert (model.weight_hh_l0[live] != before[live]).all()
    optimizer.detach()
    parameters = list(model.parameters())
    assert all(one is other for one, other in zip(model._flat_weights, parameters, strict=True))


def test_model_in_bf16_that_was_pruned_elsewhere_keeps_its_zeros():
    model = network().bfloat16()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(torch.rand(weight.shape) < 0.5)
    zero = {name: weight == 0 for name, weight in model.named_parameters()}
    inner = torch.optim.AdamW(model.parameters(), lr=1e-2)
    optimizer = SparseOptimizer(inner, model, method="static", mask="nonzero")
    steps_of(model, optimizer, 10, dtype=torch.bfloat16)
    assert optimizer.density == pytest.approx(0.5, abs=0.02)
    for layer in optimizer.layers:
        assert not layer.weight[zero[layer.name]].any()


class Mixer(nn.Module):
    """One block of an MLP-Mixer and its head."""

    def __init__(self):
        super().__init__()
        self.token = nn.Conv1d(16, 16, 1)
        self.channel = nn.Linear(20, 20)
        self.head = nn.Linear(20, 5)

    def forward(self, x):
        x = x + self.token(x).relu()
        return self.head((x + self.channel(x).relu()).mean(1))


def test_srigl_on_a_mixer_takes_no_class_away():
    torch.manual_seed(0)
    model = Mixer()
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model,
        method="srigl",
        density=0.1,
        total_steps=60,
        delta_t=5,
    )
    steps_of(model, optimizer, 45, shape=(64, 16, 20))
    assert optimizer.masks["head.weight"].any(1).all()
    assert len(optimizer.history) == 8
    assert_dropped_are_fresh(optimizer)


def test_data_parallel_around_the_model_first():
    model = nn.DataParallel(network())
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), model, density=0.2, total_steps=100, delta_t=5
    )
    steps_of(model, optimizer, 12)
    assert list(optimizer.masks) == ["0.weight", "2.weight", "4.weight"]
    assert_dropped_are_fresh(optimizer)
    assert optimizer.flops().inference_ratio == pytest.approx(0.2, abs=0.02)


def test_horizon_longer_than_the_run_can_be_seen_in_the_summary():
    model = network()
    optimizer = SparseOptimizer(
        momentum(model), model, method="pruning", density=0.1, total_steps=200, delta_t=5
    )
    steps_of(model, optimizer, 100)
    header, *_, total = optimizer.summary().splitlines()
    density, target = total.split()[1:3]
    assert header.split()[2:4] == ["density", "target"]
    assert float(density) > 1.2 * float(target) == pytest.approx(0.12, abs=0.01)
