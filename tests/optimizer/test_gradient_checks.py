"""Gradients that are zero in every entry."""

import pytest
import torch
from torch import nn

from sparseopt import SparseOptimizer
from tests.support.looking import assert_dropped_are_fresh


class Branches(nn.Module):
    """Two layers; the second one is optional."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(32, 32)
        self.second = nn.Linear(32, 32)

    def forward(self, x, *, both):
        x = self.first(x)
        return self.second(x.relu()) if both else x


def after_an_update(*, both, scale=1.0, set_to_none=False, method="rigl", state="auto"):
    torch.manual_seed(0)
    model = Branches()
    optimizer = SparseOptimizer(
        torch.optim.AdamW(model.parameters(), lr=0.01),
        model,
        method=method,
        density=0.2,
        delta_t=5,
        total_steps=100,
        state=state,
        seed=3,
    )
    before = optimizer.masks["second.weight"].clone()
    for t in range(1, 6):
        optimizer.zero_grad(set_to_none=set_to_none)
        uses = both if t == 5 else True
        factor = scale if t == 5 else 1.0
        (model(torch.randn(8, 32), both=uses).square().mean() * factor).backward()
        optimizer.step()
    return optimizer, before


@pytest.mark.parametrize("method", ["rigl", "snfs", "rigl-sg"])
def test_layer_with_a_zero_gradient_sits_out_as_one_with_none(method, state):
    zero, before = after_an_update(both=False, set_to_none=False, method=method, state=state)
    none, _ = after_an_update(both=False, set_to_none=True, method=method, state=state)
    assert torch.equal(zero.masks["second.weight"], before)
    assert torch.equal(none.masks["second.weight"], before)
    assert torch.equal(zero.masks["first.weight"], none.masks["first.weight"])
    assert zero.layers[0].last_dropped > 0
    assert zero.layers[1].last_dropped == 0
    assert_dropped_are_fresh(zero)


def test_tiny_gradients_are_gradients():
    """The squares of such gradients are zero in single precision."""
    optimizer, _ = after_an_update(both=True, scale=1e-30)
    assert optimizer.layers[1].last_grown > 0


def test_pruning_and_random_growth_do_not_need_one():
    optimizer, before = after_an_update(both=False, method="pruning")
    assert optimizer.masks["second.weight"].sum() < before.sum()
    optimizer, _ = after_an_update(both=False, method="set")
    assert optimizer.layers[1].last_grown > 0
