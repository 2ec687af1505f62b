"""Constants are added only to the bias of the module that sums over the channels."""

import torch
import torch.nn.functional as F
from torch import nn

from sparseopt import compact
from tests.speedup.masking import optimizer_without, static


def agrees(model, compacted):
    x = torch.randn(4, 6)
    torch.testing.assert_close(compacted.model(x), model(x))


class Tied(nn.Module):
    """Two layers share a weight, and only the second layer is called."""

    def __init__(self):
        super().__init__()
        self.unused, self.used = nn.Linear(8, 8), nn.Linear(8, 8)
        self.used.weight = self.unused.weight
        self.first = nn.Linear(6, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.used(self.first(x).sigmoid()).relu())


def test_tied_weight_takes_no_constants_into_the_bias_of_another_module():
    model = Tied()
    masks = {
        f"{name}.weight": torch.ones(layer.weight.shape, dtype=torch.bool)
        for name, layer in model.named_children()
        if name != "used"
    }
    masks["first.weight"][:2] = False
    compacted = compact(model, static(model, masks), example_inputs=torch.randn(4, 6))
    agrees(model, compacted)
    torch.testing.assert_close(compacted.model.unused.bias, model.unused.bias)


class TiedBias(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 8)
        self.third = nn.Linear(8, 8)
        self.third.bias = self.second.bias

    def forward(self, x):
        return self.third(self.second(self.first(x).sigmoid()).relu())


def test_tied_bias_takes_no_constants():
    model = TiedBias()
    compacted = compact(
        model, optimizer_without(model, {"first": [0, 1]}), example_inputs=torch.randn(4, 6)
    )
    agrees(model, compacted)


class TakenOut(nn.Module):
    """forward() multiplies by a layer's weight without its bias."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 3)

    def forward(self, x):
        return F.linear(self.first(x).sigmoid(), self.second.weight)


def test_no_constant_is_folded_if_forward_uses_a_weight_without_its_layer():
    model = TakenOut()
    compacted = compact(
        model, optimizer_without(model, {"first": [0, 1]}), example_inputs=torch.randn(4, 6)
    )
    agrees(model, compacted)
    reasons = [one.reason for one in compacted.report.remaining if one.name == "first.weight"]
    assert "has no bias of its own to put it in" in reasons[0]
