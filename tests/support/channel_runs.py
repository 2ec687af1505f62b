"""Runs of `rigl-struct` on the small nets with channels."""

import numpy as np
import torch

from sparseopt import RigLStruct, SparseOptimizer
from tests.oracle import ChannelOracle, default_t_end, generator_of
from tests.support.catalogue import build, fresh_value
from tests.support.channel_nets import OWNED, ChannelNet, groups_of
from tests.support.looking import logical, per_weight_state
from tests.support.nets import make
from tests.support.training import loss_of, train_step

STEPS = 60
SETTINGS = {"density": 0.3, "total_steps": STEPS, "delta_t": 3, "alpha": 0.6, "seed": 3}
#: With a density of .25 for each convolution: half of its channels.
HALF = {"init": {}, "density": 0.25}
HALF_OF = {"stem.weight": 3, "c1.weight": 3, "wide.weight": 4}


def wrapped(name="SGD", state="auto", *, kind=ChannelNet, regrow="keep", form=None, **changes):
    model = make(kind, **(form or {}))
    inner = build(name, model.parameters())
    optimizer = SparseOptimizer(
        inner,
        model,
        method=RigLStruct(groups=groups_of(kind), regrow=regrow),
        state=state,
        **{**SETTINGS, **changes},
    )
    return model, optimizer


def oracle_of(model, counts, *, owned=OWNED, regrow="keep"):
    """An oracle for the first masks of a run, from a table of what its channels own."""
    generator = generator_of(SETTINGS["seed"])
    live = {}
    for kind, own in owned.items():
        scores = torch.rand(own.channels, generator=generator).numpy()
        live[kind] = np.isin(np.arange(own.channels), np.argsort(-scores)[: counts[kind]])
    names = {name for own in owned.values() for name in (*own.vectors, *own.readers)}
    names |= {name for own in owned.values() for name in own.makers}
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if name in names}
    return ChannelOracle(
        owned,
        live,
        shapes,
        delta_t=SETTINGS["delta_t"],
        t_end=default_t_end(STEPS),
        alpha=SETTINGS["alpha"],
        regrow=regrow,
    )


def values(model, what=lambda parameter: parameter):
    return {name: logical(what(p)).reshape(tuple(p.shape)) for name, p in model.named_parameters()}


def assert_masks(optimizer, reference):
    for name, mask in reference.masks.items():
        np.testing.assert_array_equal(
            logical(optimizer.masks[name]).reshape(mask.shape), mask, err_msg=name
        )


def states(optimizer):
    return {
        layer.name: per_weight_state(optimizer, layer.weight, layer.mask)
        for layer in optimizer.layers
    }


def run_against_oracle(model, optimizer, reference):
    assert_masks(optimizer, reference)
    for t in range(1, STEPS + 1):
        assert optimizer.is_update_step == reference.is_update(t)
        if not reference.is_update(t):
            train_step(model, optimizer, t)
            continue
        before, old = states(optimizer), reference.masks
        optimizer.zero_grad()
        loss_of(model, t).backward()
        armed, gradients = values(model), values(model, lambda parameter: parameter.grad)
        reference.update(t, armed, gradients)
        optimizer.step()
        assert_masks(optimizer, reference)
        for name, mask in reference.masks.items():
            weight = dict(model.named_parameters())[name]
            expected = np.where(mask, armed[name], 0.0)
            np.testing.assert_array_equal(logical(weight), expected.reshape(-1), err_msg=name)
            after = per_weight_state(optimizer, weight, optimizer.masks[name])
            kept = (mask & old[name]).reshape(-1)
            for key, value in before[name].items():
                fresh = fresh_value(optimizer.inner, key, weight.dtype)
                np.testing.assert_array_equal(after[key], np.where(kept, value, fresh), key)
