"""Values that are constant only for some inputs or weights do not count as constants."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparseopt import CompactionError, compact
from sparseopt.speedup.compaction import pipeline
from sparseopt.speedup.compaction.constant_propagation import Constants
from tests.speedup.masking import optimizer_without, static


class BiasFromData(nn.Module):
    """A condition decides the second layer's bias, through ``add``."""

    def __init__(self, add):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 8, bias=False)
        self.condition = nn.Linear(1, 8, bias=False)
        self.third = nn.Linear(8, 8)
        self.last = nn.Linear(8, 3)
        self.add = add
        nn.init.ones_(self.condition.weight)

    def forward(self, x, z):
        x = self.add(self.first(x).relu(), self.second.weight, self.condition(z))
        return self.last(self.third(x.relu()).relu())


def by_linear(x, weight, added):
    return F.linear(x, weight, added)


def by_addmm(x, weight, added):
    return torch.addmm(added, x, weight.t())


@pytest.mark.parametrize("add", [by_linear, by_addmm])
def test_bias_that_is_made_of_an_input(add):
    torch.manual_seed(0)
    model = BiasFromData(add)
    # The condition at hand makes of the second layer's dropped neurons zeros.
    optimizer = optimizer_without(model, {"second": [0, 1, 2, 3]})
    x = torch.randn(4, 6)
    smaller = compact(model, optimizer, example_inputs=(x, torch.tensor([-1.0]))).model
    for condition in (-1.0, 1.0):
        z = torch.tensor([condition])
        torch.testing.assert_close(smaller(x, z), model(x, z))


class Conditional(nn.Module):
    """A condition decides BatchNorm's scale and shift, or the slope of PReLU."""

    def __init__(self, slope):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.norm = nn.BatchNorm2d(8, affine=False)
        self.condition = nn.Linear(1, 8, bias=False)
        self.last = nn.Conv2d(8, 3, 1)
        self.slope = slope
        nn.init.ones_(self.condition.weight)
        nn.init.constant_(self.first.bias, -0.5)

    def forward(self, x, z):
        x, made = self.first(x), self.condition(z)
        if self.slope:
            return self.last(F.prelu(x, made))
        norm = self.norm
        x = F.batch_norm(x, norm.running_mean, norm.running_var, made, made, self.training)
        return self.last(x.relu())


@pytest.mark.parametrize("slope", [False, True])
def test_scale_a_shift_and_a_slope_that_are_made_of_an_input(slope):
    torch.manual_seed(0)
    model = Conditional(slope)
    optimizer = optimizer_without(model, {"first": [0, 1, 2]})
    x = torch.randn(4, 3, 5, 5)
    smaller = compact(model, optimizer, example_inputs=(x, torch.tensor([-1.0]))).model
    for mode in (False, True):
        for condition in (-1.0, 1.0):
            z = torch.tensor([condition])
            expected = copy.deepcopy(model).train(mode)(x, z)
            torch.testing.assert_close(copy.deepcopy(smaller).train(mode)(x, z), expected)


class Gated(nn.Module):
    """A branch behind a gate that is closed now and is trained."""

    def __init__(self, gate):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.branch = nn.Linear(8, 8)
        self.last = nn.Linear(8, 3)
        self.gate = nn.Parameter(torch.zeros(1))
        self.closed = gate

    def forward(self, x):
        return self.last(self.closed(self.gate) * self.branch(self.first(x).relu()))


@pytest.mark.parametrize("gate", [torch.tanh, torch.clone, lambda gate: gate.view(1, 1) * 2.0])
def test_gate_that_begins_at_zero(gate):
    torch.manual_seed(0)
    model = Gated(gate)
    model.branch.bias.data[4] = 0
    # The other dropped neuron's bias, times the gate, is part of the gate's gradient.
    optimizer = optimizer_without(model, {"first": [0, 1], "branch": [4, 5]})
    x = torch.randn(4, 6)
    smaller = compact(model, optimizer, example_inputs=x).model
    assert smaller.branch.weight.shape == (7, 6)
    for one in (model, smaller):
        one.zero_grad()
        one(x).sin().sum().backward()
    assert model.gate.grad.abs().item() > 0.01
    torch.testing.assert_close(smaller.gate.grad, model.gate.grad)
    with torch.no_grad():
        model.gate.fill_(0.7)
        smaller.gate.fill_(0.7)
    torch.testing.assert_close(smaller(x), model(x))


def test_buffer_that_is_zero_is_a_mask():
    model = Gated(torch.tanh)
    del model.gate
    model.register_buffer("gate", torch.zeros(1))
    compacted = compact(model, optimizer_without(model, {}), example_inputs=torch.randn(4, 6))
    assert compacted.model.branch.weight.shape[0] == 1


class Scaled(nn.Module):
    """A branch with a scale for each channel that begins at zero."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.scale = nn.Parameter(torch.zeros(8))
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.scale.tanh() * self.first(x))


def test_live_channels_stay_under_scales_that_begin_at_zero():
    model = Scaled()
    model.first.bias.data[2] = 0
    smaller = compact(
        model, optimizer_without(model, {"first": [2]}), example_inputs=torch.randn(4, 6)
    ).model
    assert smaller.first.weight.shape == (7, 6)
    assert smaller.scale.shape == (7,)


def test_slope_that_all_channels_share_has_its_gradient_of_constants_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.PReLU(), nn.Linear(8, 3))
    model[0].bias.data[:3] = torch.tensor([-0.5, 0.0, 0.0])
    x = torch.randn(4, 6)
    smaller = compact(model, optimizer_without(model, {"0": [0, 1, 2]}), example_inputs=x).model
    assert smaller[0].weight.shape == (6, 6)
    for one in (model, smaller):
        one.zero_grad()
        one(x).sin().sum().backward()
    torch.testing.assert_close(smaller[1].weight.grad, model[1].weight.grad)


class GrownLater(nn.Module):
    """A transposed weight with a live entry that is zero at the moment."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.middle = nn.Linear(8, 4, bias=False)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        x = self.first(x).relu()
        return self.last(x @ self.middle.weight.t())


def test_live_weight_that_is_zero_at_the_moment_counts_where_it_is_transposed():
    model = GrownLater()
    masks = {
        f"{name}.weight": torch.ones(layer.weight.shape, dtype=torch.bool)
        for name, layer in model.named_children()
    }
    masks["middle.weight"][0] = False
    masks["middle.weight"][0, 2] = True
    optimizer = static(model, masks)
    model.middle.weight.data[0, 2] = 0
    x = torch.randn(4, 6)
    smaller = compact(model, optimizer, example_inputs=x).model
    for one in (model, smaller):
        one.zero_grad()
        one(x).sin().sum().backward()
    torch.testing.assert_close(smaller.middle.weight.grad[0, 2], model.middle.weight.grad[0, 2])


@pytest.mark.parametrize("dropout", [nn.AlphaDropout, nn.FeatureAlphaDropout])
@pytest.mark.parametrize("share", [0.0, 0.1])
def test_alpha_dropout_makes_no_constants_of_zeros_unless_it_drops_nothing(dropout, share):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.SELU(), dropout(share), nn.Linear(8, 3))
    nn.init.zeros_(model[0].bias)
    x = torch.randn(4, 6)
    compacted = compact(model, optimizer_without(model, {"0": [0, 1]}), example_inputs=x)
    assert compacted.model[0].out_features == (8 if share else 6)
    reasons = [left.reason for left in compacted.report.remaining if left.dim == 0]
    assert reasons == (
        ["no live filter makes it, but it is not one constant where 3 reads it"] if share else []
    )


def test_error_of_the_analysis_is_found_by_the_last_check(monkeypatch):
    """The last check finds any error of the analysis: here all channels count as constants."""
    model = nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 3))

    def wrong(labelling, tensors, live, inputs):
        hidden = model[0](torch.full((1, 1), -1.0)).detach()[0]
        values = {1: torch.zeros(1), 4: hidden}
        sizes = [len(found.atoms) for found in labelling.contractions]
        return [Constants(torch.ones(n, dtype=torch.bool), values[n]) for n in sizes]

    monkeypatch.setattr(pipeline, "find_constants", wrong)
    with pytest.raises(CompactionError, match="off, of values up to"):
        compact(model, optimizer_without(model), example_inputs=torch.full((2, 1), -1.0))


class Chaos(nn.Module):
    """The logistic map doubles a rounding error in each of its steps, on average."""

    def __init__(self, steps):
        super().__init__()
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 8)
        self.steps = steps

    def forward(self, x):
        p = self.last(self.first(x).tanh()).sigmoid()
        for _ in range(self.steps):
            p = 4 * p * (1 - p)
        return p


@pytest.mark.parametrize("seed", range(4))
def test_model_that_multiplies_rounding_errors_is_compared_by_them(seed):
    torch.manual_seed(seed)
    model = Chaos(12)
    x = torch.randn(4, 6)
    smaller = compact(model, optimizer_without(model, {"first": [1, 2, 7]}), example_inputs=x).model
    assert smaller.first.out_features == 13
    exact = copy.deepcopy(smaller).double()(x.double())
    torch.testing.assert_close(exact, copy.deepcopy(model).double()(x.double()), rtol=0, atol=1e-3)


def test_rounding_errors_do_not_excuse_other_differences(monkeypatch):
    """The constant of a removed channel is wrong by a hundredth."""
    torch.manual_seed(0)
    model = Chaos(8)
    find = pipeline.find_constants

    def wrong(*args):
        return [Constants(found.known, found.values + 0.01) for found in find(*args)]

    monkeypatch.setattr(pipeline, "find_constants", wrong)
    with pytest.raises(CompactionError, match="off, of values up to"):
        compact(model, optimizer_without(model, {"first": [1]}), example_inputs=torch.randn(4, 6))


class ViewedAsRows(nn.Module):
    """A view that is possible only because products keep the layout of their transposed factor."""

    def __init__(self, change):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.last = nn.Linear(8, 3)
        self.change = change

    def forward(self, x):
        hidden = self.change(self.first(x).relu().transpose(1, 2)).transpose(1, 2)
        return self.last(hidden.view(-1, hidden.shape[-1]))


@pytest.mark.parametrize("change", [torch.square, lambda h: h * h.sigmoid(), nn.Dropout(0.2)])
def test_a_view_of_a_result_that_was_computed_transposed(change):
    torch.manual_seed(0)
    model = ViewedAsRows(change)
    nn.init.constant_(model.first.bias, -0.5)
    optimizer = optimizer_without(model, {"first": [0, 1, 2]})
    smaller = compact(model, optimizer, example_inputs=torch.randn(5, 4, 6)).model.eval()
    assert smaller.first.out_features == 5
    x = torch.randn(2, 3, 6)
    torch.testing.assert_close(smaller(x), model.eval()(x))
