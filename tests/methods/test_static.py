"""Static masks never move."""

import torch

from sparseopt import SparseOptimizer
from tests.support.catalogue import build
from tests.support.looking import assert_dropped_are_fresh
from tests.support.nets import make
from tests.support.training import train


def test_mask_never_moves_and_every_step_is_an_optimizer_step(state):
    model = make()
    optimizer = SparseOptimizer(
        build("AdamW", model.parameters()),
        model,
        method="static",
        density=0.2,
        delta_t=1,
        total_steps=40,
        state=state,
    )
    masks = {name: mask.clone() for name, mask in optimizer.masks.items()}
    train(model, optimizer, 40, after=lambda _: assert_dropped_are_fresh(optimizer))
    for name, mask in masks.items():
        assert torch.equal(optimizer.masks[name], mask)
    assert optimizer.history == []
    assert all(int(s["step"]) == 40 for s in optimizer.state.values() if "step" in s)
