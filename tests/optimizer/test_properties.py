"""Invariants over random models, densities, schedules and optimizers."""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparseopt import SparseOptimizer
from tests.support.catalogue import ELEMENTWISE, build
from tests.support.looking import (
    assert_dropped_are_fresh,
    assert_same_state,
    logical,
    masks_of,
    per_weight_state,
)


@st.composite
def networks(draw):
    """A small stack of linear layers or convolutions with random sizes."""
    widths = draw(st.lists(st.integers(1, 9), min_size=2, max_size=4))
    kernel = draw(st.sampled_from([None, 1, 3]))
    torch.manual_seed(draw(st.integers(0, 99)))
    layers = []
    for inputs, outputs in itertools.pairwise(widths):
        bias = draw(st.booleans())
        if kernel is None:
            layers.append(nn.Linear(inputs, outputs, bias=bias))
        else:
            layers.append(nn.Conv2d(inputs, outputs, kernel, bias=bias))
    model = nn.Sequential(*layers)
    if kernel is not None and draw(st.booleans()):
        model = model.to(memory_format=torch.channels_last)
    return model.to(draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64])))


RUNS = st.fixed_dictionaries(
    {
        "density": st.floats(0.02, 1.0),
        "init": st.sampled_from(["erk", "er", "uniform"]),
        "delta_t": st.integers(1, 5),
        "total_steps": st.integers(8, 24),
        "alpha": st.floats(0, 1),
        "seed": st.integers(0, 2**31),
        "state": st.sampled_from(["auto", "masked"]),
    }
)
#: Which live counts every update leaves as they are: each layer's, all together, or none. With a
#: constant fan-in a layer may fall short of its count by less than one weight a neuron.
KEEP_EACH = ("static", "set", "rigl")
KEEP_THE_SUM = ("snfs", "rigl-sg", "rigl-sm")
KEEP_NONE = ("pruning", "granet", "mest")
KEEP_NEARLY = ("srigl",)
METHODS = (*KEEP_EACH, *KEEP_THE_SUM, *KEEP_NONE, *KEEP_NEARLY)
REGROW = st.sampled_from(["keep", "zero", "never"])
OPTIMIZERS = st.sampled_from([*ELEMENTWISE, "Adafactor"])


def set_gradients(model, t):
    """Random gradients with many zeros, so that some tie."""
    generator = torch.Generator().manual_seed(t)
    for p in model.parameters():
        gradient = torch.randn(p.shape, generator=generator)
        p.grad = torch.where(gradient.abs() < 0.5, 0.0, gradient).to(p)


def wrap(model, name, run, regrow):
    settings = dict(run)
    if run["method"] not in {"static", "pruning"}:
        settings["regrow"] = regrow
    if (run["method"], regrow) == ("srigl", "never"):
        settings["regrow"] = "zero"
    return SparseOptimizer(build(name, model.parameters()), model, **settings)


@pytest.mark.parametrize("method", METHODS)
@given(model=networks(), name=OPTIMIZERS, run=RUNS, regrow=REGROW)
def test_invariants_of_every_run(method, model, name, run, regrow):
    run = {**run, "method": method}
    full = {p: p.detach().clone() for p in model.parameters()}
    optimizer = wrap(model, name, run, regrow)
    targets = {layer.name: layer.target for layer in optimizer.layers}
    numel = sum(layer.numel for layer in optimizer.layers)
    for layer in optimizer.layers:
        assert 1 <= layer.live <= layer.numel
        assert torch.equal(layer.weight[layer.mask], full[layer.weight][layer.mask])

    for t in range(1, run["total_steps"] + 1):
        before, updating = masks_of(optimizer), optimizer.is_update_step
        dense = {layer.name for layer in optimizer.layers if layer.density == 1}
        set_gradients(model, t)
        optimizer.step()
        after = masks_of(optimizer)

        for layer in optimizer.layers:
            live = int(after[layer.name].sum())
            assert live == layer.live >= 1
            if method in KEEP_EACH:
                assert live == targets[layer.name]
                assert layer.name not in dense or live == layer.numel
            elif method in KEEP_NEARLY:
                fan_ins = after[layer.name].reshape(layer.weight.shape[0], -1).sum(1)
                neurons = int((fan_ins > 0).sum())
                assert set(fan_ins) <= {0, targets[layer.name] // neurons}
                assert targets[layer.name] - neurons < live <= targets[layer.name]
            elif method == "pruning":
                assert not (after[layer.name] & ~before[layer.name]).any()
            elif targets[layer.name] == layer.numel:
                assert live == layer.numel
            if not updating:
                np.testing.assert_array_equal(before[layer.name], after[layer.name])
            else:
                new = after[layer.name] & ~before[layer.name]
                assert not logical(layer.weight)[new].any()
        if method in KEEP_THE_SUM:
            assert sum(layer.live for layer in optimizer.layers) == sum(targets.values())
        assert_dropped_are_fresh(optimizer)
        assert len(optimizer.history) == 0 or optimizer.history[-1].step <= t
        if updating:
            assert optimizer.history[-1].step == t
            assert optimizer.history[-1].density == sum(la.live for la in optimizer.layers) / numel

    assert optimizer.steps == run["total_steps"]
    if method in KEEP_NONE:
        live = sum(layer.live for layer in optimizer.layers)
        assert live == sum(targets.values())


def rounded_by_torch(name, model):
    """Loading casts scalar state that a plain optimizer keeps in fp32 to the weights' dtype."""
    return name in {"ASGD", "NAdam"} and next(model.parameters()).dtype != torch.float32


@pytest.mark.filterwarnings("ignore:the model was sparse before:UserWarning")
@pytest.mark.parametrize("method", METHODS)
@given(
    model=networks(),
    name=OPTIMIZERS,
    run=RUNS,
    regrow=REGROW,
    stop=st.integers(0, 20),
    state=st.sampled_from(["auto", "masked"]),
)
def test_saving_and_loading_at_any_step_is_invisible(method, model, name, run, regrow, stop, state):
    run = {**run, "method": method}
    stop = min(stop, run["total_steps"])
    optimizer = wrap(model, name, run, regrow)
    for t in range(1, stop + 1):
        set_gradients(model, t)
        optimizer.step()

    other_model = copy.deepcopy(model)
    other = wrap(other_model, name, {**run, "state": state, "seed": 1}, regrow)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other_model.load_state_dict(model.state_dict())

    for t in range(stop + 1, run["total_steps"] + 1):
        for net, one in ((model, optimizer), (other_model, other)):
            set_gradients(net, t)
            one.step()
    assert [r.step for r in optimizer.history] == [r.step for r in other.history]
    if state == run["state"] and not rounded_by_torch(name, model):
        for mine, theirs in zip(model.parameters(), other_model.parameters(), strict=True):
            assert torch.equal(mine, theirs)
        assert optimizer.history == other.history
        for left, right in zip(optimizer.layers, other.layers, strict=True):
            assert torch.equal(left.mask, right.mask), left.name
            assert_same_state(
                per_weight_state(optimizer, left.weight, left.mask),
                per_weight_state(other, right.weight, right.mask),
            )


@given(model=networks(), run=RUNS, method=st.sampled_from(METHODS), regrow=REGROW)
def test_run_is_deterministic_for_a_seed(model, run, method, regrow):
    run = {**run, "method": method}
    other_model = copy.deepcopy(model)
    optimizer, other = (wrap(net, "SGD", run, regrow) for net in (model, other_model))
    for t in range(1, run["total_steps"] + 1):
        for net, one in ((model, optimizer), (other_model, other)):
            torch.manual_seed(t if net is model else t + 1000)
            set_gradients(net, t)
            one.step()
    for mine, theirs in zip(model.parameters(), other_model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert optimizer.history == other.history
