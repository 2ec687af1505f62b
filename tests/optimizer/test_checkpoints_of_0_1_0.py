"""Checkpoints of version 0.1.0 load, and training goes on from them as 0.1.0's did."""

import contextlib

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


def other_mode(run):
    """The run with the other form of optimizer state."""
    old, new = ("compact", "masked") if "-compact-" in run else ("masked", "compact")
    return run.replace(old, new)


def old_spelling(run):
    """The warning that a run provokes, if it gives the state mode by its name in 0.1.0."""
    if "-compact-" in run:
        return pytest.warns(DeprecationWarning, match='state="compact".* write state="live"')
    return contextlib.nullcontext()


@pytest.mark.parametrize(
    ("run", "into"), [*((run, run) for run in RUNS), *((run, other_mode(run)) for run in RUNS[:-1])]
)
def test_checkpoint_of_0_1_0_goes_on_as_0_1_0_did(run, into):
    saved = torch.load(FOLDER / f"{run}.pt", weights_only=True)
    assert saved["version"] == "0.1.0"
    model = build_model(run)
    with old_spelling(into):
        optimizer = build_optimizer(into, model)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    assert optimizer.steps == SAVED_AT

    train(model, optimizer, saved["batches"])

    progress = optimizer.state_dict()["param_groups"][0]["sparseopt"]
    assert progress["state"] == ("live" if "-compact-" in into else "masked")
    assert "compact" not in progress
    masks = saved["masks_at_end"]
    assert masks.keys() == optimizer.masks.keys()
    assert all(torch.equal(mask, optimizer.masks[name]) for name, mask in masks.items())
    history = [(record.step, record.dropped, record.grown) for record in optimizer.history]
    assert history == saved["history_at_end"]
    # Other processors round differently; on one processor the bits are the same.
    torch.testing.assert_close(
        dict(model.state_dict()), saved["model_at_end"], rtol=1e-4, atol=1e-6
    )
