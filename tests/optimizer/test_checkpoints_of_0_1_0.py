"""Checkpoints of version 0.1.0 load, and training goes on from them as 0.1.0's did."""

import pytest
import torch

from tests.optimizer.checkpoints_0_1_0.runs import (
    FOLDER,
    RUNS,
    SAVED_AT,
    build_model,
    build_optimizer,
    train,
)


@pytest.mark.parametrize("run", RUNS)
def test_checkpoint_of_0_1_0_goes_on_as_0_1_0_did(run):
    saved = torch.load(FOLDER / f"{run}.pt", weights_only=True)
    assert saved["version"] == "0.1.0"
    model = build_model(run)
    optimizer = build_optimizer(run, model)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    assert optimizer.steps == SAVED_AT

    train(model, optimizer, saved["batches"])

    masks = saved["masks_at_end"]
    assert masks.keys() == optimizer.masks.keys()
    assert all(torch.equal(mask, optimizer.masks[name]) for name, mask in masks.items())
    history = [(record.step, record.dropped, record.grown) for record in optimizer.history]
    assert history == saved["history_at_end"]
    # Other processors round differently; on one processor the bits are the same.
    torch.testing.assert_close(
        dict(model.state_dict()), saved["model_at_end"], rtol=1e-4, atol=1e-6
    )
