"""Weights that a norm, a parametrization or the layer itself computes from parameters."""

import logging

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from sparseopt import NoSparseLayerError, SparseOptimizer
from tests.oracle.distributions import erk_densities
from tests.support.looking import densities, names
from tests.support.selecting import train
from tests.support.wrapping import wrap


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_weight_that_is_computed_is_as_sparse_as_what_it_is_computed_from(norm):
    make = getattr(parametrizations, norm)
    model = nn.Sequential(make(nn.Conv1d(4, 8, 3)), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6, 2))
    optimizer = wrap(model, sparse={"0.weight": True}, density=0.4, init={})
    assert names(optimizer)[0].startswith("0.parametrizations.weight.original")
    train(optimizer, lambda: model(torch.randn(5, 4, 8)).square().mean())
    live = optimizer.layers[0].live
    assert optimizer.history[0].grown
    assert int((model[0].weight != 0).sum()) <= live < 96
    # 6 positions, 2 FLOPs for each live weight; spectral norm multiplies by the weight once more.
    report = optimizer.flops(model, torch.randn(1, 4, 8))
    assert report.computed == 0.0
    assert {layer.name: layer.sparse for layer in report.layers}[names(optimizer)[0]] == (
        pytest.approx(2 * 6 * live, rel=0.2)
    )


@pytest.mark.parametrize("norm", ["weight_norm", "spectral_norm"])
def test_erk_takes_a_convolution_for_one_layer_whatever_computes_its_weight(norm):
    make = getattr(parametrizations, norm)
    model = nn.Sequential(make(nn.Conv1d(32, 64, 3)), nn.Conv1d(64, 64, 3))
    optimizer = wrap(model, sparse={"0": True}, density=0.25)
    plain = wrap(nn.Sequential(nn.Conv1d(32, 64, 3), nn.Conv1d(64, 64, 3)), density=0.25)
    assert [layer.live for layer in optimizer.layers] == [layer.live for layer in plain.layers]


def test_erk_takes_every_gate_for_a_layer_under_weight_norm():
    def normed(inputs, outputs):
        return parametrizations.weight_norm(nn.LSTMCell(inputs, outputs), "weight_hh")

    optimizer = wrap(nn.Sequential(normed(12, 20)), sparse={nn.LSTMCell: True}, density=0.3)
    by_matrix = erk_densities([(20, 12)] * 4 + [(20, 20)] * 4, 0.3)
    live = {layer.name: layer.live for layer in optimizer.layers}
    assert live == {
        "0.weight_ih": round(by_matrix[0] * 960),
        "0.parametrizations.weight_hh.original1": round(by_matrix[4] * 1600),
    }


def test_temporal_convolutions_under_the_older_weight_norm_become_sparse():
    with pytest.warns(FutureWarning, match="weight_norm"):
        convolution = torch.nn.utils.weight_norm(nn.Conv1d(4, 8, 3, padding=2, dilation=2))
    model = nn.Sequential(convolution, nn.ReLU(), nn.Conv1d(8, 2, 1))
    optimizer = wrap(model, sparse={"0": True}, density=0.3)
    assert names(optimizer) == ["0.weight_v", "2.weight"]
    train(optimizer, lambda: model(torch.randn(5, 4, 8)).square().mean())
    assert int((model[0].weight != 0).sum()) <= optimizer.layers[0].live
    report = optimizer.flops(model, torch.randn(1, 4, 8))
    assert report.computed == 0.0


def test_masks_of_torch_prune_can_be_trained_on():
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 2))
    prune.l1_unstructured(model[0], "weight", amount=0.75)
    optimizer = wrap(model, sparse={"0": True}, mask={"0.weight_orig": model[0].weight_mask.bool()},
                     method="static")  # fmt: skip
    train(optimizer, lambda: model(torch.randn(5, 8)).square().mean())
    assert torch.equal(model[0].weight != 0, optimizer.masks["0.weight_orig"])


class Attention(nn.Module):
    """Weights of its own, of which one is called as what the older weight norm makes."""

    def __init__(self):
        super().__init__()
        for name in ("weight_q", "weight_k", "weight_v"):
            setattr(self, name, nn.Parameter(torch.randn(8, 8) / 3))

    def forward(self, x):
        attended = (x @ self.weight_q) @ (x @ self.weight_k).T
        return attended.softmax(-1) @ (x @ self.weight_v)


def test_parameter_that_is_only_called_as_one_of_weight_norm_is_a_weight_of_its_own():
    model = nn.Sequential(Attention(), nn.Linear(8, 2))
    optimizer = wrap(model, sparse={"0": True}, init={"0": 0.5}, density=0.25)
    weights = ["0.weight_q", "0.weight_k", "0.weight_v"]
    assert densities(optimizer) == {**dict.fromkeys(weights, 0.5), "1.weight": 0.25}
    report = optimizer.flops(model, torch.randn(5, 8))
    sparse = {layer.name: layer.sparse for layer in report.layers}
    # 2 FLOPs for each live weight, and an addition for each of two biases.
    assert sparse == dict.fromkeys(weights, 64.0) | {"1.weight": 10.0}
    with pytest.raises(ValueError, match=r"'0.weight' is not known"):
        wrap(nn.Sequential(Attention()), sparse={"0.weight": True})
    with pytest.raises(ValueError, match=r"'0' is not known"):
        optimizer.set_masks({"0": torch.eye(8).bool()})


@pytest.mark.parametrize("key", ["0", "0.weight", "0.weigh?"])
def test_written_name_of_a_computed_weight_is_known_everywhere(key):
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8)), nn.Linear(8, 2))
    optimizer = wrap(model, sparse={key: True}, init={key: 0.5}, density=0.25)
    name = "0.parametrizations.weight.original1"
    assert densities(optimizer) == {name: 0.5, "1.weight": 0.25}
    if "?" not in key:
        # Beside the diagonal, what is live now: weight norm needs a number in every row.
        mask = optimizer.masks[name] | torch.eye(8).bool()
        optimizer.set_masks({key: mask})
        assert torch.equal(optimizer.masks[name], mask)


def test_written_name_of_a_model_that_is_one_module():
    model = parametrizations.weight_norm(nn.Linear(8, 8))
    optimizer = wrap(model, sparse={"weight": True}, init={"weight": 0.5})
    assert densities(optimizer) == {"parametrizations.weight.original1": 0.5}


def test_selection_of_what_a_parametrization_spreads_is_refused():
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(8, 8)), nn.Linear(8, 2))
    with pytest.raises(ValueError, match=r"_Orthogonal computes the weight '0.weight'"):
        wrap(model, sparse={"0": True})


def refuse_density_of_group(model, unusable, reason):
    """See the density of a group refused, and return what is sparse without the unusable weight."""
    inner = torch.optim.SGD([{"params": model.parameters(), "density": 0.25}], lr=0.1)
    with pytest.raises(ValueError, match=f"asks for a density of {reason}"):
        SparseOptimizer(inner, model)
    return names(SparseOptimizer(inner, model, sparse={unusable: False}, total_steps=1000))


def test_density_of_a_param_group_for_what_a_parametrization_spreads_is_refused():
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(8, 8)), nn.Linear(8, 2))
    reason = r"'0.parametrizations.*_Orthogonal"
    assert refuse_density_of_group(model, "0.weight", reason) == ["1.weight"]


def test_flops_count_what_a_parametrization_spreads_as_dense():
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(8, 8, bias=False)))
    nn.init.normal_(model[0].parametrizations.weight.original)
    # Without the model, nobody knows what the parameter is for.
    inner = torch.optim.SGD(model.named_parameters(), lr=0.1)
    optimizer = SparseOptimizer(inner, density=0.25, method="static")
    assert optimizer.layers[0].live == 16
    assert model[0].weight.count_nonzero() == 64
    assert optimizer.flops(model, torch.randn(1, 8)).inference_sparse >= 2 * 64


STANDARDISING = {
    "StdConv2d": "timm.layers",
    "StdConv2dSame": "timm.layers",
    "ScaledStdConv2d": "timm.layers",
    "ScaledStdConv2dSame": "timm.layers",
    "WeightStandardizedConv2d": "transformers.models.bit.modeling_bit",
}


@pytest.fixture(params=STANDARDISING)
def standardising(request):
    """A convolution that standardises its weight, and a linear layer."""
    package = pytest.importorskip(STANDARDISING[request.param])
    conv = getattr(package, request.param)(3, 4, 3)
    return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def test_weight_that_its_convolution_standardises_stays_dense(standardising, caplog):
    with caplog.at_level(logging.WARNING, "sparseopt"):
        optimizer = wrap(standardising)
    assert names(optimizer) == ["3.weight"]
    kind = type(standardising[0]).__name__
    assert any(f"'0.weight' is standardised by {kind}" in line for line in caplog.messages)


def test_zero_of_a_weight_that_is_standardised_is_no_zero_of_the_convolution(standardising):
    conv = standardising[0]
    nn.init.zeros_(conv.weight)
    nn.init.ones_(conv.weight[:, :1])
    only_zeros_read_it = torch.zeros(1, 3, 5, 5)
    only_zeros_read_it[:, 1] = 1.0
    assert (conv(only_zeros_read_it) - conv(torch.zeros(1, 3, 5, 5))).abs().min() > 0.01


def test_selection_of_a_weight_that_is_standardised_is_refused(standardising):
    kind = type(standardising[0]).__name__
    with pytest.raises(ValueError, match=rf"'0\.weight', which {kind} standardises"):
        wrap(standardising, sparse={"0": True})
    reason = rf"'0\.weight', which {kind}"
    assert refuse_density_of_group(standardising, "0", reason) == ["3.weight"]


def test_model_of_weights_that_are_standardised_is_refused_with_the_reason(standardising):
    with pytest.raises(NoSparseLayerError, match=r"'0\.weight' is standardised by"):
        wrap(standardising[:1])
