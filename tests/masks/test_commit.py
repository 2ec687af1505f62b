"""The values of a weight after its mask has changed: kept values, starts, and zeros."""

import pytest
import torch

from sparseopt import SparseLayer


@pytest.mark.parametrize("part_of_a_graph", [False, True], ids=["leaf", "differentiable"])
def test_new_weights_begin_with_what_they_are_given(part_of_a_graph):
    values = torch.arange(1.0, 13.0).view(3, 4)
    mask = torch.zeros(3, 4, dtype=torch.bool)
    mask[0] = True
    layer = SparseLayer("weight", torch.nn.Parameter(torch.where(mask, values, 0.0)), mask, 4)
    if part_of_a_graph:
        # As after a step of an optimizer with differentiable=True.
        layer.weight = layer.weight.clone()
    positions = torch.tensor([0, 1, 6, 7], dtype=torch.int32)
    kept = torch.tensor([True, True, False, False])

    layer._commit(positions, kept, start=torch.full((3, 4), -5.0))

    expected = torch.zeros(3, 4)
    expected[0, :2] = values[0, :2]
    expected[1, 2:] = -5.0
    assert torch.equal(layer.weight.detach(), expected)
