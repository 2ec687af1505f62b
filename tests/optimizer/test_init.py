"""How dense each layer starts: patterns in `init=`, and gates and experts as layers of ERK."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from sparseopt import Pruning
from tests.oracle.distributions import erk_densities
from tests.support.looking import densities
from tests.support.selecting import LanguageModel, train
from tests.support.wrapping import wrap


class Experts(nn.Module):
    """Three experts, each a matrix of a parameter of three dimensions."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 8, 24) / 5)
        self.down = nn.Parameter(torch.randn(3, 24, 8) / 5)
        self.gate = nn.Linear(8, 3)

    def forward(self, x):
        shares = self.gate(x).softmax(-1)
        each = torch.relu(x @ self.up.view(3, 1, 8, 24).squeeze(1)) @ self.down
        return torch.einsum("enf,ne->nf", each, shares)


@pytest.mark.parametrize(("cell", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_erk_takes_every_gate_for_a_layer(cell, gates):
    optimizer = wrap(LanguageModel(cell), sparse={cell: True, "embed": True}, density=0.3)
    shapes = [(40, 12), *[(20, 12)] * gates, *[(20, 20)] * gates, (40, 20)]
    by_matrix = erk_densities(shapes, 0.3)
    expected = [by_matrix[0], by_matrix[1], by_matrix[1 + gates], by_matrix[-1]]
    numel = [480, 240 * gates, 400 * gates, 800]
    for layer, density, size in zip(optimizer.layers, expected, numel, strict=True):
        assert (layer.live, layer.numel) == (round(density * size), size), layer.name


def test_erk_takes_every_expert_for_a_layer():
    model = Experts()
    optimizer = wrap(model, sparse={Experts: True}, density=0.4)
    by_matrix = erk_densities([(8, 24)] * 3 + [(24, 8)] * 3 + [(3, 8)], 0.4)
    assert [layer.live for layer in optimizer.layers] == [
        round(by_matrix[0] * 576), round(by_matrix[3] * 576), round(by_matrix[6] * 24)
    ]  # fmt: skip
    train(optimizer, lambda: model(torch.randn(16, 8)).square().mean())
    for layer in optimizer.layers:
        assert int((layer.weight != 0).sum()) <= layer.live
        assert not layer.weight[~layer.mask].any()


def test_init_takes_patterns_the_named_ones_first():
    optimizer = wrap(
        LanguageModel(), sparse={"*": True}, density=0.2,
        init={"*": "erk", "head": 1.0, "lstm.*": 0.5},
    )  # fmt: skip
    assert densities(optimizer) == pytest.approx(
        {"embed.weight": 0.2, "lstm.weight_ih_l0": 0.5, "lstm.weight_hh_l0": 0.5, "head.weight": 1},
        abs=1e-3,
    )


def test_init_with_a_dense_head_spreads_the_rest_by_erk():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.Linear(32, 10))
    optimizer = wrap(model, init={"3": 1.0, "*": "erk"}, density=0.1)
    rest = erk_densities([(64, 64), (32, 64)], 0.1)
    assert [layer.live for layer in optimizer.layers] == [
        round(rest[0] * 4096), round(rest[1] * 2048), 320
    ]  # fmt: skip


def test_init_keeps_its_distribution_where_training_starts_denser():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.Linear(32, 10))
    optimizer = wrap(model, method="granet", init={"3": 1.0, "*": "erk"}, density=0.1)
    rest = erk_densities([(64, 64), (32, 64)], 0.5)
    assert [layer.live for layer in optimizer.layers][:2] == [
        round(rest[0] * 4096), round(rest[1] * 2048)
    ]  # fmt: skip


@pytest.mark.parametrize("choice", [np.float32(0.25), Fraction(1, 4)])
def test_init_of_any_number_starts_as_dense_as_the_method_does(choice):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    optimizer = wrap(model, method=Pruning(initial=0.5), init={"0": choice}, density=0.25)
    assert densities(optimizer) == {"0.weight": 0.5, "1.weight": 0.5}
    assert [layer.target for layer in optimizer.layers] == [16, 16]


@pytest.mark.parametrize("key", ["heads", "heads.*", "?"])
def test_init_with_a_name_or_pattern_that_matches_nothing_is_refused(key):
    with pytest.raises(ValueError, match="is not known"):
        wrap(LanguageModel(), init={key: 0.5})
