"""Which weights are made sparse, and what they are called."""

from functools import partial

import pytest
import torch
from torch import nn

from sparseopt import SparseOptimizer
from tests.support import wrapping
from tests.support.looking import assert_dropped_are_fresh, is_dense, names
from tests.support.nets import SPARSE_NAMES, make
from tests.support.training import backward, train
from tests.support.wrapping import settings_with

SETTINGS = settings_with(density=0.25, delta_t=3, init="er")
wrap = partial(wrapping.wrap, name="AdamW", **SETTINGS)


def run(model, optimizer, inputs, steps=7):
    """Train on random inputs, and check that masks hold."""
    for _ in range(steps):
        optimizer.zero_grad()
        out = model(*inputs())
        out = out[0] if isinstance(out, tuple) else out
        out.square().mean().backward()
        optimizer.step()
        assert_dropped_are_fresh(optimizer)
    assert len(optimizer.history) == steps // 3


CONVOLUTIONS = [
    (nn.Conv1d(6, 8, 3), (2, 6, 9)),
    (nn.Conv2d(6, 8, (3, 1)), (2, 6, 9, 9)),
    (nn.Conv2d(6, 8, 3, groups=2), (2, 6, 9, 9)),
    (nn.Conv2d(6, 6, 3, groups=6), (2, 6, 9, 9)),
    (nn.Conv3d(6, 8, 2), (2, 6, 4, 4, 4)),
    (nn.ConvTranspose1d(6, 8, 3), (2, 6, 9)),
    (nn.ConvTranspose2d(6, 8, 3), (2, 6, 9, 9)),
    (nn.ConvTranspose3d(6, 8, 2), (2, 6, 4, 4, 4)),
    (nn.Linear(6, 8), (2, 6)),
]


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS, ids=lambda v: str(v)[:40])
def test_convolutions_and_linear_layers_are_sparse(layer, shape, state):
    model = nn.Sequential(layer)
    model[0].reset_parameters()
    optimizer = wrap(model, state=state)
    assert names(optimizer) == ["0.weight"]
    assert optimizer.layers[0].weight is model[0].weight
    assert optimizer.layers[0].live == round(0.25 * model[0].weight.numel())
    run(model, optimizer, lambda: [torch.randn(shape)])


def test_normalisation_embedding_recurrent_and_bilinear_weights_are_dense():
    """In another library a GroupNorm kept one weight of eight."""

    class Zoo(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 6)
            self.layer_norm = nn.LayerNorm([4, 6])
            self.group_norm = nn.GroupNorm(2, 8)
            self.batch_norm = nn.BatchNorm2d(8)
            self.embedding = nn.Embedding(10, 6)
            self.lstm = nn.LSTM(6, 6)
            self.bilinear = nn.Bilinear(3, 3, 3)
            self.prelu = nn.PReLU(4)
            self.table = nn.Parameter(torch.randn(5, 6))

    model = Zoo()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = wrap(model)
    assert names(optimizer) == ["linear.weight"]
    for name, p in model.named_parameters():
        if name != "linear.weight":
            assert is_dense(optimizer, name)
            assert torch.equal(p, before[name])


def test_norms_stay_dense_through_training():
    model = make()
    optimizer = wrap(model)
    train(model, optimizer, 10)
    for norm in (model.norm.weight, model.conv1.bias, model.fc1.bias):
        assert norm.ne(0).all()
    assert names(optimizer) == list(SPARSE_NAMES)


@pytest.mark.parametrize("with_model", [True, False])
def test_weights_without_entries_are_left_out(with_model):
    model = nn.ModuleList([nn.Linear(4, 4), nn.Linear(8, 8)])
    model[0].weight = nn.Parameter(torch.empty(0, 4))
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = SparseOptimizer(inner, model if with_model else None, density=0.5)
    assert [layer.numel for layer in optimizer.layers] == [64]


def test_frozen_weights_are_neither_masked_nor_listed():
    model = make()
    model.conv2.weight.requires_grad_(False)
    before = model.conv2.weight.detach().clone()
    optimizer = wrap(model)
    assert "conv2.weight" not in optimizer.masks
    train(model, optimizer, 7)
    assert torch.equal(model.conv2.weight, before)


def test_weights_that_the_optimizer_does_not_have_stay_dense():
    """A backbone with another optimizer is not masked by this one."""
    model = make()
    before = model.conv1.weight.detach().clone()
    inner = torch.optim.SGD([*model.fc1.parameters(), *model.fc2.parameters()], lr=0.1)
    optimizer = SparseOptimizer(inner, model, **SETTINGS)
    assert names(optimizer) == ["fc1.weight", "fc2.weight"]
    assert torch.equal(model.conv1.weight, before)


def test_optimizers_can_share_a_model():
    model = make()
    first = SparseOptimizer(
        torch.optim.SGD([*model.conv1.parameters(), *model.conv2.parameters()], lr=0.05),
        model,
        **SETTINGS,
    )
    second = SparseOptimizer(
        torch.optim.AdamW([*model.fc1.parameters(), *model.fc2.parameters()], lr=0.01),
        model,
        **{**SETTINGS, "density": 0.5, "method": "set"},
    )
    for t in range(1, 11):
        backward(model, t)
        first.step()
        second.step()
        assert_dropped_are_fresh(first)
        assert_dropped_are_fresh(second)
    assert names(first) == ["conv1.weight", "conv2.weight"]
    assert names(second) == ["fc1.weight", "fc2.weight"]


@pytest.mark.parametrize("with_model", [True, False])
def test_complex_weights_are_refused_by_name(with_model):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, dtype=torch.complex64))
    inner = torch.optim.SGD(model.named_parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"1\.weight"):
        SparseOptimizer(inner, model if with_model else None, **SETTINGS)


class Tied(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embedding = nn.Embedding(12, 8) if kind == "embedding" else nn.Linear(8, 12)
        self.middle = nn.Linear(8, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embedding.weight


def test_weight_shared_with_an_embedding_stays_dense():
    model = Tied("embedding")
    before = model.embedding.weight.detach().clone()
    optimizer = wrap(model)
    assert is_dense(optimizer, "embedding.weight")
    assert is_dense(optimizer, "head.weight")
    assert torch.equal(model.head.weight, before)
    assert not is_dense(optimizer, "middle.weight")
    for _ in range(7):
        optimizer.zero_grad()
        model.head(model.middle(model.embedding(torch.arange(12)))).square().mean().backward()
        optimizer.step()
    assert model.head.weight.ne(0).all()


def test_weight_shared_by_two_linear_layers_is_one_layer():
    """The weight is counted, masked and updated once, by the gradient of both uses."""
    model = Tied("linear")
    optimizer = wrap(model)
    assert names(optimizer) == ["embedding.weight", "middle.weight"]
    total = model.embedding.weight.numel() + model.middle.weight.numel()
    assert sum(layer.numel for layer in optimizer.layers) == total
    for _ in range(7):
        optimizer.zero_grad()
        x = model.head(model.middle(torch.randn(3, 8)))
        (model.embedding(torch.randn(3, 8)) + x).square().mean().backward()
        optimizer.step()
        assert_dropped_are_fresh(optimizer)
    assert model.head.weight is model.embedding.weight
    assert int(model.head.weight.count_nonzero()) <= optimizer.layers[0].live


@pytest.mark.parametrize("kdim", [None, 6])
def test_projections_of_attention_are_sparse(kdim, state):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, kdim=kdim, vdim=kdim, batch_first=True)

        def forward(self, query, key):
            return self.attention(query, key, key, need_weights=False)[0]

    model = Attention()
    optimizer = wrap(model, state=state)
    inputs = ["in_proj"] if kdim is None else ["q_proj", "k_proj", "v_proj"]
    expected = {*(f"attention.{name}_weight" for name in inputs), "attention.out_proj.weight"}
    assert set(names(optimizer)) == expected
    order = [name for name, _ in model.named_parameters() if name in expected]
    assert names(optimizer) == order
    run(model, optimizer, lambda: [torch.randn(2, 5, 8), torch.randn(2, 5, kdim or 8)])


def test_transformer_trains_sparse(state):
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    optimizer = wrap(model, state=state)
    assert names(optimizer) == [
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "linear1.weight",
        "linear2.weight",
    ]
    run(model, optimizer, lambda: [torch.randn(2, 5, 8)])


class WithModule(torch.nn.Module):
    """Has a child of the name that wrappers give to the model."""

    def __init__(self):
        super().__init__()
        self.module = torch.nn.Sequential()
        self.module.fc = torch.nn.Linear(20, 30)
        self.fc = torch.nn.Linear(30, 10)


def test_weights_that_would_have_one_name_are_refused():
    model = WithModule()
    with pytest.raises(ValueError, match=r"two different weights are called 'fc\.weight'"):
        SparseOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model)
    nets = [torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)]
    groups = [{"params": list(net.named_parameters())} for net in nets]
    with pytest.raises(ValueError, match="two different weights are called 'weight'"):
        SparseOptimizer(torch.optim.SGD(groups, lr=0.1))
