"""What torch and its users expect of an optimizer."""

import copy

import pytest
import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from sparseopt import SparseOptimizer
from tests.support.catalogue import build
from tests.support.looking import assert_same_weights
from tests.support.nets import loss_of, make
from tests.support.training import backward, train
from tests.support.wrapping import SETTINGS, wrap


def test_sparse_optimizer_is_an_optimizer():
    model = make()
    inner = build("AdamW", model.parameters())
    optimizer = SparseOptimizer(inner, model, **SETTINGS)
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.inner is inner
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.defaults is inner.defaults
    assert optimizer.state is inner.state
    assert "SparseOptimizer" in repr(optimizer)
    assert "AdamW" in repr(optimizer)


def test_groups_and_state_read_through_after_loading():
    """`load_state_dict` replaces both in the inner optimizer; a stored reference would be stale."""
    model = make()
    optimizer = wrap(model, "AdamW")
    train(model, optimizer, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["lr"] = 0.125
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups is optimizer.inner.param_groups
    assert optimizer.state is optimizer.inner.state
    assert optimizer.param_groups[0]["lr"] == optimizer.inner.param_groups[0]["lr"] == 0.125
    optimizer.param_groups[0]["lr"] = 0.0
    weights = [p.detach().clone() for p in model.parameters()]
    train(model, optimizer, 1, start=3)
    for p, before in zip(model.parameters(), weights, strict=True):
        assert torch.equal(p, before), "the learning rate did not arrive"


def test_setting_groups_state_and_defaults_reaches_the_inner_optimizer():
    model = make()
    optimizer = wrap(model)
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    assert all(group["lr"] == 0.5 for group in optimizer.inner.param_groups)
    optimizer.defaults["lr"] = 0.25
    assert optimizer.inner.defaults["lr"] == 0.25


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none):
    model = make()
    optimizer = wrap(model)
    for t in range(1, 11):
        backward(model, t)
        optimizer.step()
        optimizer.zero_grad(set_to_none=set_to_none)
        for p in model.parameters():
            assert p.grad is None if set_to_none else not p.grad.any()


def test_kinds_of_zero_grad_train_alike(state):
    models = [make(), make()]
    for model, set_to_none in zip(models, (True, False), strict=True):
        optimizer = wrap(model, state=state)
        for t in range(1, 21):
            optimizer.zero_grad(set_to_none=set_to_none)
            loss_of(model, t).backward()
            optimizer.step()
    assert_same_weights(*models)


def test_step_hooks_fire_once_a_step_also_on_update_steps():
    model = make()
    optimizer = wrap(model)
    calls = []
    optimizer.register_step_pre_hook(lambda opt, *_: calls.append(("pre", opt, opt.steps)))
    optimizer.register_step_post_hook(lambda opt, *_: calls.append(("post", opt, opt.steps)))
    train(model, optimizer, 11)
    expected = []
    for t in range(1, 12):
        expected += [("pre", optimizer, t - 1), ("post", optimizer, t)]
    assert [(kind, count) for kind, _, count in calls] == [(k, c) for k, _, c in expected]
    assert all(opt is optimizer for _, opt, _ in calls)


def test_global_step_hooks_fire_once_a_step():
    model = make()
    optimizer = wrap(model)
    pre, post = [], []
    handles = [
        register_optimizer_step_pre_hook(lambda opt, *_: pre.append(opt)),
        register_optimizer_step_post_hook(lambda opt, *_: post.append(opt)),
    ]
    try:
        train(model, optimizer, 11)
    finally:
        for handle in handles:
            handle.remove()
    assert len(pre) == len(post) == 11


def test_step_hooks_of_the_inner_optimizer_fire_once_a_step_too():
    """Hooks that were registered on the inner optimizer before wrapping."""
    model = make()
    inner = build("SGD", model.parameters())
    calls = []
    inner.register_step_pre_hook(lambda *_: calls.append("pre"))
    inner.register_step_post_hook(lambda *_: calls.append("post"))
    optimizer = SparseOptimizer(inner, model, **SETTINGS)
    train(model, optimizer, 6)
    assert calls == ["pre", "post"] * 6


def test_removed_step_hook_no_longer_fires():
    model = make()
    optimizer = wrap(model)
    calls = []
    handle = optimizer.register_step_post_hook(lambda *_: calls.append(1))
    train(model, optimizer, 2)
    handle.remove()
    train(model, optimizer, 2, start=2)
    assert len(calls) == 2


def test_state_dict_hooks_fire_once():
    model = make()
    optimizer = wrap(model)
    calls = []
    optimizer.register_state_dict_pre_hook(lambda _: calls.append("save"))
    optimizer.register_state_dict_post_hook(lambda _opt, _dict: calls.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda _opt, _dict: calls.append("load"))
    optimizer.register_load_state_dict_post_hook(lambda _: calls.append("loaded"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["save", "saved", "load", "loaded"]


def test_profiler_shows_every_step_once_under_the_name_of_the_wrapper():
    model = make()
    optimizer = wrap(model)
    train(model, optimizer, 4)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(model, optimizer, 2, start=4)
    names = [event.name for event in profile.events() if event.name.startswith("Optimizer.step#")]
    assert names.count("Optimizer.step#SparseOptimizer.step") == 2
