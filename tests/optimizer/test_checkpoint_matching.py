"""Which schedule wins, how layers are matched, across memory formats and devices."""

import copy
import warnings

import pytest
import torch
from torch import nn

from sparseopt import SparseOptimizer
from tests.support.catalogue import build
from tests.support.looking import (
    assert_same_weights,
)
from tests.support.nets import SPARSE_NAMES, make
from tests.support.resuming import SETTINGS, assert_same_run, resumed, saved_and_loaded, wrap
from tests.support.training import train


@pytest.mark.parametrize("method", ["set", "rigl"])
@pytest.mark.parametrize(("out_of", "into"), [(True, False), (False, True)])
def test_channels_last_and_contiguous_load_into_each_other(out_of, into, method, state, tmp_path):
    """The run continues like a run in the new memory format from the same point."""
    model = make(channels_last=out_of)
    optimizer = wrap(model, method=method, state=state)
    train(model, optimizer, 12)
    saved = saved_and_loaded(optimizer, tmp_path)
    other_model, other = resumed(model, saved, channels_last=into, method=method, state=state)
    assert_same_run(model, optimizer, other_model, other)
    for t in range(12, 24):
        generator = torch.Generator().manual_seed(t)
        for mine, theirs in zip(model.parameters(), other_model.parameters(), strict=True):
            mine.grad = torch.randn(mine.shape, generator=generator)
            theirs.grad = mine.grad.clone()
        optimizer.step()
        other.step()
    assert_same_run(model, optimizer, other_model, other)
    for name, p in other_model.named_parameters():
        if p.ndim == 4:
            layout = torch.channels_last if into else torch.contiguous_format
            assert p.is_contiguous(memory_format=layout), name


def test_checkpoint_loads_across_devices(device, tmp_path):
    if device == "cpu":
        pytest.skip("needs a second device")
    model = make(device=device)
    optimizer = wrap(model)
    train(model, optimizer, 12)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    saved = torch.load(tmp_path / "optimizer.pt", map_location="cpu")
    other = wrap(make())
    other.load_state_dict(saved)
    for name, mask in optimizer.masks.items():
        assert torch.equal(other.masks[name], mask.cpu())
        assert other.masks[name].device.type == "cpu"


def test_checkpoints_schedule_wins_and_a_different_one_warns():
    model = make()
    optimizer = wrap(model, delta_t=3, alpha=0.2)
    train(model, optimizer, 7)
    with pytest.warns(UserWarning, match=r"delta_t") as caught:
        other_model, other = resumed(model, optimizer.state_dict(), delta_t=5, alpha=0.4)
    assert len(caught) == 1
    assert "alpha" in str(caught[0].message)
    train(model, optimizer, 15, start=7)
    train(other_model, other, 15, start=7)
    assert_same_run(model, optimizer, other_model, other)
    assert [record.step for record in other.history] == [3, 6, 9, 12, 15]


def test_another_total_steps_warns_even_if_the_masks_stop_at_the_same_step():
    saved = wrap(make(), method="granet", total_steps=100, t_end=40).state_dict()
    optimizer = wrap(make(), method="granet", total_steps=200, t_end=40)
    with pytest.warns(UserWarning, match=r"total_steps=100\. .*total_steps=200"):
        optimizer.load_state_dict(saved)


def test_warning_of_another_schedule_is_of_the_line_that_loads():
    saved = wrap(make(), delta_t=3).state_dict()
    optimizer = wrap(make(), delta_t=5)
    with pytest.warns(UserWarning, match="schedule is used") as caught:
        optimizer.load_state_dict(saved)
    assert caught[0].filename == __file__


def test_same_schedule_does_not_warn():
    model = make()
    optimizer = wrap(model)
    train(model, optimizer, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed(model, optimizer.state_dict())


def test_horizon_set_later_comes_back():
    model = make()
    optimizer = wrap(model, total_steps=None)
    optimizer.set_horizon(20)
    train(model, optimizer, 7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other_model, other = resumed(model, optimizer.state_dict(), total_steps=None)
    train(model, optimizer, 13, start=7)
    train(other_model, other, 13, start=7)
    assert_same_run(model, optimizer, other_model, other)
    assert [record.step for record in other.history] == [5, 10]


class Wrapper(nn.Module):
    """Puts `module.` before every name, as DataParallel and DDP do."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


@pytest.mark.parametrize("prefixed", ["saved", "loaded"])
def test_prefix_of_a_wrapper_is_stripped(prefixed):
    model = make()
    named = Wrapper(model) if prefixed == "saved" else model
    optimizer = SparseOptimizer(build("AdamW", model.parameters()), named, **SETTINGS)
    train(model, optimizer, 7)
    other_model = make(seed=9)
    named = Wrapper(other_model) if prefixed == "loaded" else other_model
    other = SparseOptimizer(build("AdamW", other_model.parameters()), named, **SETTINGS)
    other_model.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 10, start=7)
    train(other_model, other, 10, start=7)
    assert_same_weights(model, other_model)
    for left, right in zip(optimizer.layers, other.layers, strict=True):
        assert torch.equal(left.mask, right.mask)


def test_layers_without_names_match_by_position_and_shape():
    model, other_model = make(), make(seed=5)
    optimizer = SparseOptimizer(build("AdamW", model.parameters()), **SETTINGS)
    train(model, optimizer, 7)
    other = SparseOptimizer(build("AdamW", other_model.parameters()), **SETTINGS)
    other_model.load_state_dict(model.state_dict())
    other.load_state_dict(optimizer.state_dict())
    assert_same_run(model, optimizer, other_model, other)
    assert len(other.layers) == len(SPARSE_NAMES)


def test_checkpoints_made_without_names_load_into_a_run_with_names():
    model, other_model = make(), make(seed=5)
    optimizer = SparseOptimizer(build("AdamW", model.parameters()), **SETTINGS)
    train(model, optimizer, 7)
    other = wrap(other_model)
    other_model.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for left, right in zip(optimizer.layers, other.layers, strict=True):
        assert torch.equal(left.mask, right.mask)
    train(model, optimizer, 5, start=7)
    train(other_model, other, 5, start=7)
    assert_same_weights(model, other_model)


def with_head_first(model, named_by=None):
    """The order of the param groups is not the order of the modules."""
    first = list(model.fc2.parameters())
    rest = [p for name, p in model.named_parameters() if not name.startswith("fc2")]
    inner = torch.optim.AdamW([{"params": first, "lr": 0.01}, {"params": rest}])
    return SparseOptimizer(inner, named_by, **SETTINGS)


@pytest.mark.parametrize("saved_with_names", [False, True])
def test_order_of_the_param_groups_decides_where_names_are_missing(saved_with_names):
    model, other_model = make(), make(seed=5)
    optimizer = with_head_first(model, model if saved_with_names else None)
    other = with_head_first(other_model, None if saved_with_names else other_model)
    train(model, optimizer, 7)
    other_model.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    masks = {layer.weight: layer.mask for layer in other.layers}
    mine, theirs = dict(model.named_parameters()), dict(other_model.named_parameters())
    for layer in optimizer.layers:
        name = next(name for name, parameter in mine.items() if parameter is layer.weight)
        assert torch.equal(masks[theirs[name]], layer.mask), name
    # No update comes in these steps: layers in another order draw other random numbers.
    train(model, optimizer, 2, start=7)
    train(other_model, other, 2, start=7)
    assert_same_weights(model, other_model)


def test_checkpoint_of_pruning_with_its_own_counts(tmp_path):
    """Layers of a half-pruned model have other live counts than a fresh optimizer's."""
    model = make()
    optimizer = wrap(model, method="pruning")
    train(model, optimizer, 12)
    other_model = make(seed=5)
    other = wrap(other_model, method="pruning")
    assert other.density == 1.0
    other.load_state_dict(saved_and_loaded(optimizer, tmp_path))
    assert other.density == optimizer.density < 1.0
    for layer in other.layers:
        assert layer.live == int(layer.mask.sum())
