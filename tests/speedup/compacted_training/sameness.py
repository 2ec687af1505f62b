"""Trainings that have to be the same: without dropped channels, and with them."""

import torch

from tests.support.looking import per_weight_state


def assert_same_training(model, optimizer, expected_model, expected):
    """The same masks, weights, optimizer state and statistics, except where they have no effect."""
    assert optimizer.history == expected.history
    theirs = dict(expected_model.named_parameters())
    masks = expected.masks
    for name, mine in model.named_parameters():
        torch.testing.assert_close(
            mine, theirs[name], msg=lambda text, name=name: f"{name}: {text}"
        )
        if name in masks:
            assert torch.equal(optimizer.masks[name], masks[name]), name
        found = per_weight_state(optimizer, mine, optimizer.masks.get(name))
        for key, value in per_weight_state(expected, theirs[name], masks.get(name)).items():
            torch.testing.assert_close(*map(torch.from_numpy, (found[key], value)))
    for name, mine in model.named_buffers():
        live = masks.get(name.rpartition(".")[0] + ".weight", torch.tensor(True))
        if live.shape == mine.shape:
            buffer = dict(expected_model.named_buffers())[name]
            torch.testing.assert_close(mine[live], buffer[live])
