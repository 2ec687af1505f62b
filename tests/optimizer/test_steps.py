"""Which calls count as a step, and what the wrapper leaves in the model."""

import warnings

import pytest
import torch
from torch import nn

from tests.support.looking import assert_dropped_are_fresh, assert_same_weights
from tests.support.nets import SPARSE_NAMES, make
from tests.support.training import train, train_step
from tests.support.wrapping import wrap


def test_probe_step_does_not_count(state):
    """Distributed checkpointing steps once with lr 0 and zero gradients to create the state."""
    model, other = make(), make()
    probed, unprobed = wrap(model, "AdamW", state=state), wrap(other, "AdamW", state=state)
    rates = [group["lr"] for group in probed.param_groups]
    for group in probed.param_groups:
        group["lr"] = 0.0
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    probed.step()
    probed.zero_grad()
    for group, lr in zip(probed.param_groups, rates, strict=True):
        group["lr"] = lr
    assert probed.steps == 0
    assert probed.history == []
    train(model, probed, 12)
    train(other, unprobed, 12)
    assert [r.step for r in probed.history] == [r.step for r in unprobed.history] == [5, 10]


def test_step_with_learning_rate_zero_and_real_gradients_counts():
    model = make()
    optimizer = wrap(model)
    optimizer.param_groups[0]["lr"] = 0.0
    train(model, optimizer, 6)
    assert optimizer.steps == 6
    assert [record.step for record in optimizer.history] == [5]


def test_steps_are_counted_from_one():
    model = make()
    optimizer = wrap(model)
    assert optimizer.steps == 0
    train(model, optimizer, 3)
    assert optimizer.steps == 3
    assert not optimizer.is_update_step
    train(model, optimizer, 1, start=3)
    assert optimizer.is_update_step
    train(model, optimizer, 1, start=4)
    assert [record.step for record in optimizer.history] == [5]


def test_ordinary_run_gives_no_warning(state):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = make()
        optimizer = wrap(model, state=state)
        train(model, optimizer, 40)


def test_apply_masks_makes_another_model_sparse():
    """An average of a moving mask is not sparse; `apply_masks` makes it so."""
    model = make()
    optimizer = wrap(model)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    for t in range(1, 21):
        train_step(model, optimizer, t)
        average.update_parameters(model)
    blurred = dict(average.module.named_parameters())
    before = {name: p.detach().clone() for name, p in blurred.items()}
    assert any(blurred[name][~optimizer.masks[name]].any() for name in SPARSE_NAMES), (
        "nothing to mask: the test shows nothing"
    )
    optimizer.apply_masks(average)
    for name, p in blurred.items():
        expected = before[name]
        if name in optimizer.masks:
            expected = torch.where(optimizer.masks[name], expected, 0.0)
        assert torch.equal(p, expected), name


def test_apply_masks_to_a_model_without_these_layers_names_the_layer():
    model = make()
    optimizer = wrap(model)
    with pytest.raises((ValueError, KeyError), match=r"conv1\.weight"):
        optimizer.apply_masks(nn.Linear(3, 3))


def test_apply_masks_to_a_model_of_other_shapes_names_the_layer_and_changes_nothing():
    model, other = make(), make(seed=1)
    optimizer = wrap(model)
    other.fc2 = nn.Linear(16, 7)
    before = {name: p.detach().clone() for name, p in other.named_parameters()}
    with pytest.raises(ValueError, match=r"fc2\.weight"):
        optimizer.apply_masks(other)
    for name, p in other.named_parameters():
        assert torch.equal(p, before[name]), name


def test_model_state_and_export_carry_no_trace(tmp_path):
    """The saved model is an ordinary model."""
    model = make()
    optimizer = wrap(model)
    train(model, optimizer, 6)
    assert set(model.state_dict()) == set(make().state_dict())
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = make(seed=5)
    other.load_state_dict(torch.load(tmp_path / "model.pt"))
    assert_same_weights(model, other)
    zeros = sum(int((~mask).sum()) for mask in optimizer.masks.values())
    assert sum(int(p.eq(0).sum()) for p in other.parameters()) >= zeros
    assert {type(m) for m in model.modules()} == {type(m) for m in make().modules()}


@pytest.mark.parametrize("steps", [0, 6])
def test_weights_written_from_outside_are_masked_by_the_next_step(steps, state):
    """Weights change after wrapping: loaded, initialised again, or swapped in from an average."""
    model = make()
    optimizer = wrap(model, method="static", state=state)
    train(model, optimizer, steps)
    model.load_state_dict(make(seed=4).state_dict())
    train(model, optimizer, 1, start=steps)
    assert_dropped_are_fresh(optimizer)
