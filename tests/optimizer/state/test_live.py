"""Live state holds the live weights only."""

import pytest
import torch

from sparseopt import SparseOptimizer
from tests.support.catalogue import ELEMENTWISE, build, model_for, torch_optimizers
from tests.support.looking import assert_dropped_are_fresh, logical, per_weight_state
from tests.support.nets import make
from tests.support.training import train
from tests.support.wrapping import SETTINGS, wrap


def trained(name, state, steps=12, **form):
    model = make(**form)
    inner = build(name, model.parameters())
    optimizer = SparseOptimizer(inner, model, state=state, **SETTINGS)
    train(model, optimizer, steps)
    return model, optimizer


def state_bytes(optimizer):
    return sum(
        value.numel() * value.element_size()
        for entry in optimizer.state.values()
        for value in entry.values()
        if torch.is_tensor(value) and value.dtype != torch.bool
    )


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_auto_keeps_the_state_of_elementwise_optimizers_live(name):
    _, optimizer = trained(name, "auto")
    for layer in optimizer.layers:
        if layer.density == 1:
            continue
        per_weight = [
            value
            for value in optimizer.state[layer.weight].values()
            if torch.is_tensor(value) and value.numel() > 1
        ]
        assert per_weight
        assert all(value.shape == (layer.live,) for value in per_weight)


@pytest.mark.parametrize("name", [n for n in torch_optimizers() if n not in ELEMENTWISE])
def test_auto_keeps_all_other_state_as_it_is(name):
    model = model_for(name)
    optimizer = wrap(model, name)
    plain_model = model_for(name)
    plain = build(name, plain_model.parameters())
    train(model, optimizer, 3)
    train(plain_model, plain, 3)
    for mine, theirs in zip(model.parameters(), plain_model.parameters(), strict=True):
        shapes = {k: v.shape for k, v in optimizer.state[mine].items() if torch.is_tensor(v)}
        expected = {k: v.shape for k, v in plain.state[theirs].items() if torch.is_tensor(v)}
        assert shapes == expected


def test_live_state_takes_the_share_of_memory_that_is_live():
    model, optimizer = trained("AdamW", "live")
    _, masked = trained("AdamW", "masked")
    _, plain_like = trained("AdamW", "masked", steps=1)
    sparse = sum(layer.numel - layer.live for layer in optimizer.layers)
    assert state_bytes(masked) == state_bytes(plain_like)
    assert state_bytes(masked) - state_bytes(optimizer) == 2 * 4 * sparse
    assert sum(p.numel() for p in model.parameters()) > sparse > 0


@pytest.mark.parametrize("channels_last", [False, True])
def test_live_state_is_in_logical_order(channels_last):
    """After one step of SGD the momentum buffer is the gradient of the live weights."""
    model = make(channels_last=channels_last)
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = SparseOptimizer(inner, model, state="live", **SETTINGS)
    train(model, optimizer, 1)
    for layer in optimizer.layers:
        if layer.density < 1:
            expected = logical(layer.weight.grad)[logical(layer.mask)]
            buffer = optimizer.state[layer.weight]["momentum_buffer"]
            assert logical(buffer).tolist() == expected.tolist()


def test_parameters_are_whole_whenever_the_user_looks():
    """The inner optimizer has 1-D parameters only during its step."""
    model = make(channels_last=True)
    optimizer = wrap(model, "AdamW", state="live")
    parameters = list(model.parameters())
    pointers = [p.data_ptr() for p in parameters]
    shapes = [p.shape for p in parameters]
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append([p.shape for p in parameters]))
    optimizer.register_step_post_hook(lambda *_: seen.append([p.shape for p in parameters]))
    train(model, optimizer, 12)
    assert all(shape == shapes for shape in seen)
    assert [p.data_ptr() for p in parameters] == pointers, "a weight moved in memory"
    assert all(p is q for p, q in zip(parameters, model.parameters(), strict=True))


def test_error_inside_the_step_gives_everything_back():
    """After a step that fails half-way, weights and gradients have their shapes."""
    model = make()
    inner = build("AdamW", model.parameters())
    optimizer = SparseOptimizer(inner, model, state="live", **SETTINGS)
    train(model, optimizer, 2)
    shapes = [p.shape for p in model.parameters()]
    gradients = [p.grad for p in model.parameters()]
    weights = [p.detach().clone() for p in model.parameters()]
    betas, inner.param_groups[0]["betas"] = inner.param_groups[0]["betas"], None
    with pytest.raises(TypeError):
        optimizer.step()
    inner.param_groups[0]["betas"] = betas
    assert [p.shape for p in model.parameters()] == shapes
    for p, gradient, weight in zip(model.parameters(), gradients, weights, strict=True):
        assert p.grad is gradient
        assert torch.equal(p, weight)
    train(model, optimizer, 5, start=2)
    assert_dropped_are_fresh(optimizer)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_state_that_was_there_before_wrapping_is_taken_over(name, state):
    """A plain run is wrapped in the middle: live weights keep their moments."""
    model, plain_model = make(), make()
    inner = build(name, model.parameters())
    plain = build(name, plain_model.parameters())
    train(model, inner, 5)
    train(plain_model, plain, 5)
    optimizer = SparseOptimizer(inner, model, state=state, **{**SETTINGS, "method": "static"})
    for mine, theirs in zip(model.parameters(), plain_model.parameters(), strict=True):
        mask = next((la.mask for la in optimizer.layers if la.weight is mine), None)
        before = per_weight_state(plain, theirs)
        after = per_weight_state(optimizer, mine, mask)
        assert before.keys() == after.keys()
        live = slice(None) if mask is None else logical(mask)
        for key in before:
            assert (after[key][live] == before[key][live]).all(), key
    train(model, optimizer, 5, start=5)
    assert_dropped_are_fresh(optimizer)


def test_state_is_keyed_by_the_users_own_parameters():
    model, optimizer = trained("AdamW", "live")
    assert set(optimizer.state) == set(model.parameters())
    assert set(optimizer.state) == set(optimizer.inner.state)
