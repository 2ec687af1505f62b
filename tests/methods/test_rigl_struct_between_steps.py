"""Dropped channels are zero in all that is saved between two steps, and saving changes no run."""

import copy

import pytest
import torch

from sparseopt import load_sparse, save_sparse
from tests.support.channel_nets import ChannelNet
from tests.support.channel_runs import HALF, wrapped
from tests.support.nets import loss_of, make
from tests.support.training import train

#: The first update, of which the gradients overflow or the forward pass is saved.
UPDATE = 3
LAST = 8


def assert_clean(optimizer, state_dict):
    for name, mask in optimizer.masks.items():
        assert not state_dict[name][~mask].any(), name


def assert_same_run(model, optimizer, other_model, other):
    for name, weight in model.named_parameters():
        assert torch.equal(weight, other_model.get_parameter(name)), name
    for name, mask in optimizer.masks.items():
        assert torch.equal(mask, other.masks[name]), name
    assert optimizer.history == other.history
    assert optimizer.history[0].new > 0


def uninterrupted(steps=LAST):
    model, optimizer = wrapped("AdamW", **HALF)
    train(model, optimizer, steps)
    return model, optimizer


def overflow(model, optimizer, scaler):
    """A step that GradScaler skips."""
    optimizer.zero_grad()
    (scaler.scale(loss_of(model, 99)) * torch.inf).backward()
    scaler.step(optimizer)
    scaler.update()


def overflown_before_the_update():
    model, optimizer = wrapped("AdamW", **HALF)
    train(model, optimizer, UPDATE - 1)
    overflow(model, optimizer, torch.amp.GradScaler("cpu", init_scale=2.0))
    assert optimizer.steps == UPDATE - 1
    return model, optimizer


def test_model_saved_after_an_overflow_has_no_dropped_channel():
    model, optimizer = overflown_before_the_update()
    assert_clean(optimizer, model.state_dict())


def test_optimizer_saved_after_an_overflow_cleans_the_weights():
    model, optimizer = overflown_before_the_update()
    optimizer.state_dict()
    assert_clean(optimizer, dict(model.named_parameters()))


def test_zero_grad_after_an_overflow_cleans_the_weights():
    model, optimizer = overflown_before_the_update()
    optimizer.zero_grad()
    assert_clean(optimizer, dict(model.named_parameters()))


@pytest.mark.parametrize("given", ["optimizer", "masks", "nonzero"])
def test_sparse_file_written_after_an_overflow_holds_live_weights_only(given, tmp_path):
    pytest.importorskip("safetensors")
    expected, its_optimizer = uninterrupted(UPDATE - 1)
    size = size_of_file(tmp_path / "expected", expected, its_optimizer, given)
    assert size_of_file(tmp_path / "overflown", *overflown_before_the_update(), given) == size
    loaded = make(ChannelNet, seed=5)
    load_sparse(tmp_path / "overflown", loaded)
    for name, weight in expected.named_parameters():
        assert torch.equal(weight, loaded.get_parameter(name)), name


def size_of_file(path, model, optimizer, given):
    masks = {"optimizer": optimizer, "masks": optimizer.masks, "nonzero": "nonzero"}[given]
    save_sparse(path, model, masks)
    return path.stat().st_size


@pytest.mark.parametrize("saves", [False, True])
def test_run_with_an_overflow_is_the_run_without_that_batch(saves):
    model, optimizer = overflown_before_the_update()
    if saves:
        model.state_dict()
    train(model, optimizer, LAST - UPDATE + 1, start=UPDATE - 1)
    assert_same_run(model, optimizer, *uninterrupted())


def test_zero_grad_between_forward_and_backward_after_an_overflow_keeps_the_run():
    """The order of Lightning: the gradients of the last pass are reset before ``backward()``."""
    model, optimizer = overflown_before_the_update()
    loss = loss_of(model, UPDATE)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    train(model, optimizer, LAST - UPDATE, start=UPDATE)
    assert_same_run(model, optimizer, *uninterrupted())


def test_zero_grad_between_two_backward_passes_of_one_graph_keeps_the_run():
    """As in methods that project the gradients of several losses."""
    model, optimizer = wrapped("AdamW", **HALF)
    train(model, optimizer, UPDATE - 1)
    loss = loss_of(model, UPDATE)
    loss.backward(retain_graph=True)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    train(model, optimizer, LAST - UPDATE, start=UPDATE)
    assert_same_run(model, optimizer, *uninterrupted())


def micro_batches(model, optimizer, step, between):
    """A step of two micro-batches; ``between`` is called after each."""
    optimizer.zero_grad()
    for part in range(2):
        (loss_of(model, 10 * step + part) / 2).backward()
        between()
    optimizer.step()


def run_of_micro_batches(model, optimizer, start=0, between=lambda: None):
    for step in range(start + 1, LAST + 1):
        micro_batches(model, optimizer, step, between)


def test_checkpoints_between_micro_batches_change_no_run_and_resume_it():
    model, optimizer = wrapped("AdamW", **HALF)
    run_of_micro_batches(model, optimizer)
    saving, its_optimizer = wrapped("AdamW", **HALF)
    saved = []

    def save():
        saved.append(
            copy.deepcopy((its_optimizer.steps, saving.state_dict(), its_optimizer.state_dict()))
        )
        assert_clean(its_optimizer, saved[-1][1])

    run_of_micro_batches(saving, its_optimizer, between=save)
    assert_same_run(model, optimizer, saving, its_optimizer)
    steps, weights, state = saved[2 * UPDATE - 2]
    assert steps == UPDATE - 1
    resumed, resumed_optimizer = wrapped("AdamW", **{**HALF, "seed": 8})
    resumed.load_state_dict(weights)
    resumed_optimizer.load_state_dict(state)
    run_of_micro_batches(resumed, resumed_optimizer, start=steps)
    assert_same_run(model, optimizer, resumed, resumed_optimizer)


def test_model_saved_between_forward_and_backward_leaves_the_pass_intact():
    model, optimizer = wrapped("AdamW", **HALF)
    train(model, optimizer, UPDATE - 1)
    loss = loss_of(model, UPDATE)
    model.state_dict()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    train(model, optimizer, LAST - UPDATE, start=UPDATE)
    assert_same_run(model, optimizer, *uninterrupted())
