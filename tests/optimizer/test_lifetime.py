"""Detaching, deleting and garbage collection remove all hooks from the model."""

import copy
import gc
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from sparseopt import SparseOptimizer
from tests.support.by_hand import HandMasked
from tests.support.catalogue import ELEMENTWISE, build
from tests.support.looking import assert_dropped_are_fresh, assert_same_weights
from tests.support.nets import loss_of, make
from tests.support.oracles import oracle_for
from tests.support.training import backward, dense_gradients, train
from tests.support.wrapping import SETTINGS, wrap


def assert_no_hook(model, masks):
    """The gradient is the dense one, dropped weights included."""
    dense = dense_gradients(model, 9)
    backward(model, 9)
    for name, p in model.named_parameters():
        assert torch.equal(p.grad, dense[name]), f"{name} is still masked"
    assert any(dense[name][~mask].any() for name, mask in masks.items()), "nothing to see"
    for p in model.parameters():
        assert not p._post_accumulate_grad_hooks
        assert not p._backward_hooks
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_detach_removes_the_hooks():
    model = make()
    optimizer = wrap(model)
    train(model, optimizer, 3)
    masks = {name: mask.clone() for name, mask in optimizer.masks.items()}
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.detach()
    for name, p in model.named_parameters():
        assert torch.equal(p, weights[name])
    assert_no_hook(model, masks)
    optimizer.detach()


def test_detach_before_the_first_forward():
    model = make()
    optimizer = wrap(model)
    masks = dict(optimizer.masks)
    optimizer.detach()
    assert_no_hook(model, masks)


def test_detach_of_a_copy_before_the_first_forward():
    original = make()
    model, optimizer = copy.deepcopy((original, wrap(original)))
    masks = dict(optimizer.masks)
    optimizer.detach()
    assert_no_hook(model, masks)


@pytest.mark.parametrize("steps", [0, 7])
def test_collected_optimizer_leaves_the_model_unmasked(steps, state):
    model = make()
    optimizer = wrap(model, state=state)
    train(model, optimizer, steps)
    masks = {name: mask.clone() for name, mask in optimizer.masks.items()}
    reference = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert reference() is None
    assert_no_hook(model, masks)


def test_optimizer_collected_while_a_graph_is_traced_gives_its_state_back():
    """The garbage collector can run at any time, also during a compilation."""
    model = make()
    inner = build("AdamW", model.parameters())
    optimizer = SparseOptimizer(inner, model, **SETTINGS)
    train(model, optimizer, 3)
    before = {layer.weight: (layer.mask, inner.state[layer.weight]) for layer in optimizer.layers}
    live = {weight: entry["exp_avg"].clone() for weight, (_, entry) in before.items()}
    with FakeTensorMode():
        del optimizer
        gc.collect()
    for weight, (mask, _) in before.items():
        moments = inner.state[weight]["exp_avg"]
        assert moments.shape == weight.shape
        assert torch.equal(moments[mask], live[weight].reshape(-1))
        assert not moments[~mask].any()


def test_optimizer_collected_while_torch_imports_gives_its_state_back():
    """In a process of its own, because torch imports a module once."""
    script = Path(__file__).with_name("collected_during_import.py")
    result = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert "Exception ignored" not in result.stderr
    assert result.stdout == "(16,) (16, 32)\n", result.stderr


@pytest.mark.parametrize("pre_dispatch", [False, True])
def test_optimizer_collected_while_a_graph_is_traced_leaves_nothing_in_the_graph(pre_dispatch):
    """``torch.export`` traces before dispatch."""
    model = make()
    optimizer = [wrap(model, "AdamW")]
    train(model, optimizer[0], 3)

    def collecting(x):
        optimizer.clear()
        gc.collect()
        return x + 1

    graph = make_fx(collecting, pre_dispatch=pre_dispatch)(torch.ones(2)).graph
    assert [node.op for node in graph.nodes] == ["placeholder", "call_function", "output"]


def test_model_does_not_keep_the_optimizer_alive_nor_the_other_way_round():
    model = make()
    optimizer = wrap(model)
    train(model, optimizer, 3)
    references = weakref.ref(optimizer.inner), weakref.ref(model), weakref.ref(optimizer)
    del optimizer, model
    gc.collect()
    assert [reference() for reference in references] == [None, None, None]


@pytest.mark.parametrize(
    ("name", "how"), [*((name, "detach") for name in ELEMENTWISE), ("AdamW", "collect")]
)
def test_inner_optimizer_goes_on_by_itself(name, how, state):
    """Equal to a plain optimizer from the same weights and state; all weights move again."""
    model, own_model = make(), make()
    inner = build(name, model.parameters())
    optimizer = SparseOptimizer(inner, model, state=state, **SETTINGS)
    by_hand = HandMasked(
        own_model, build(name, own_model.parameters()), oracle_for("rigl", own_model, **SETTINGS)
    )
    train(model, optimizer, 12)
    for _ in range(12):
        by_hand.step()
    if how == "detach":
        optimizer.detach()
    else:
        del optimizer
        gc.collect()

    for t in range(13, 18):
        for net, plain in ((model, inner), (own_model, by_hand.optimizer)):
            plain.zero_grad()
            loss_of(net, t).backward()
            plain.step()
    assert_same_weights(model, own_model)
    for p in model.parameters():
        for key, value in inner.state[p].items():
            if torch.is_tensor(value) and value.numel() > 1:
                assert value.shape == p.shape, key


def test_inner_state_dict_of_a_detached_optimizer_loads_into_a_plain_one(state):
    model = make()
    optimizer = wrap(model, "AdamW", state=state)
    train(model, optimizer, 7)
    inner = optimizer.inner
    optimizer.detach()
    other = make()
    plain = build("AdamW", other.parameters())
    plain.load_state_dict(copy.deepcopy(inner.state_dict()))
    other.load_state_dict(model.state_dict())
    train(model, inner, 4, start=7)
    train(other, plain, 4, start=7)
    assert_same_weights(model, other)


def test_wrapping_again_after_detach_masks_once_more(state):
    model = make()
    first = wrap(model, state=state)
    train(model, first, 7)
    masks = {name: mask.clone() for name, mask in first.masks.items()}
    inner = first.inner
    first.detach()
    second = SparseOptimizer(inner, model, mask=masks, state=state, method="static")
    train(model, second, 3)
    assert_dropped_are_fresh(second)
    for name, mask in masks.items():
        assert torch.equal(second.masks[name], mask)
