"""Updates in edge cases: nothing to move."""

import pytest
import torch
from torch import nn

from sparseopt import SparseOptimizer
from sparseopt.masks.live_copies import live_copies_for


@pytest.mark.parametrize("method", ["set", "rigl", "pruning"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_update_in_which_nothing_moves_changes_nothing(method, channels_last, state):
    # With a 1x1 kernel in channels-last, a flat mask that is viewed in the weight's shape has other
    # strides than a mask that was made in this shape.
    model = nn.Sequential(nn.Conv2d(4, 8, 1, bias=False), nn.Conv2d(8, 8, 3, bias=False))
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        model,
        method=method,
        density=0.2,
        alpha=0.0,
        delta_t=5,
        total_steps=20,
        state=state,
    )
    for _ in range(20):
        before = {name: mask.clone() for name, mask in optimizer.masks.items()}
        weights = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer.zero_grad()
        model(torch.randn(2, 4, 6, 6)).square().mean().backward()
        updating = optimizer.is_update_step
        optimizer.step()
        if updating and method != "pruning":
            assert optimizer.history[-1].dropped == optimizer.history[-1].grown == 0
            assert all(torch.equal(before[name], optimizer.masks[name]) for name in before)
            assert all(map(torch.equal, weights, model.parameters()))
    assert [record.step for record in optimizer.history]


def held_bytes(layer):
    """Bytes of all tensors that belong to the layer alone."""
    values = vars(layer).values()
    return sum(v.nbytes for v in values if isinstance(v, torch.Tensor) and v is not layer.weight)


def test_layer_above_density_a_quarter_holds_a_byte_and_a_bit_a_weight_with_masked_state():
    """During an update positions take four bytes more for each live weight.

    Layers of at most 4096 weights hold a byte a weight more: see the page on semantics. Where the
    kernels copy live weights, they read one bit a weight more.
    """
    model = nn.Linear(64, 72, bias=False)
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        model,
        density=0.5,
        delta_t=2,
        total_steps=20,
        state="masked",
    )
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 64)).square().mean().backward()
        optimizer.step()
    assert len(optimizer.history) == 2
    assert optimizer.history[-1].grown > 0
    bits = 9 if live_copies_for(model.weight.detach().view(-1)) is None else 10
    assert held_bytes(optimizer.layers[0]) == 64 * 72 * bits // 8
