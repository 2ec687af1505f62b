"""GraNet prunes from density 0.5 to the target and grows weights between."""

import numpy as np
import pytest
import torch

from sparseopt import GraNet
from tests import oracle
from tests.support.agreement import assert_run_is_that_by_hand, run_against_oracle
from tests.support.arithmetic import place_does_not_matter
from tests.support.looking import (
    assert_dropped_are_fresh,
    logical,
    masks_of,
)
from tests.support.nets import SPARSE_NAMES, make
from tests.support.training import train, train_step
from tests.support.wrapping import wrap

STEPS = 62
SETTINGS = {"density": 0.1, "total_steps": STEPS, "delta_t": 4, "seed": 3, "alpha": 0.5}


def wrapped(name, state, *, dtype=torch.float32, method="granet", initial=0.5, init="erk"):
    model = make(dtype=dtype)
    optimizer = wrap(model, name, method=method, state=state, init=init, **SETTINGS)
    params = dict(model.named_parameters())
    shapes = [tuple(params[layer].shape) for layer in SPARSE_NAMES]
    spread = {"erk": oracle.erk_densities, "er": oracle.er_densities}[init]
    targets = oracle.live_counts(shapes, spread(shapes, SETTINGS["density"]))
    start = oracle.live_counts(shapes, spread(shapes, initial))
    generator = oracle.generator_of(SETTINGS["seed"])
    numels = [params[layer].numel() for layer in SPARSE_NAMES]
    masks = oracle.random_masks(numels, start, generator)
    reference = oracle.GraNetOracle(
        dict(zip(SPARSE_NAMES, masks, strict=True)),
        dict(zip(SPARSE_NAMES, targets, strict=True)),
        initial=initial,
        delta_t=SETTINGS["delta_t"],
        t_end=oracle.default_t_end(STEPS),
        alpha=SETTINGS["alpha"],
    )
    return model, optimizer, reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_every_update_agrees_with_the_oracle(name, dtype, state):
    model, optimizer, reference = wrapped(name, state, dtype=dtype)
    assert run_against_oracle(model, optimizer, reference, STEPS) == 12
    final = sum(layer.target for layer in optimizer.layers)
    assert sum(layer.live for layer in optimizer.layers) == final
    assert sum(record.grown for record in optimizer.history) > final


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_whole_run_agrees_with_a_dense_run_masked_by_hand(name, state):
    if state == "live" and not place_does_not_matter(name, {}, torch.float32):
        pytest.skip("torch's own last bit depends on the place")
    model, optimizer, reference = wrapped(name, state, init="er")
    assert_run_is_that_by_hand(name, model, optimizer, reference, STEPS)


@pytest.mark.parametrize("initial", [0.3, 0.8])
def test_granet_starts_at_its_initial_density(initial):
    model, optimizer, reference = wrapped(
        "SGD", "auto", method=GraNet(initial=initial), initial=initial
    )
    assert optimizer.density == pytest.approx(initial, abs=0.01)
    assert run_against_oracle(model, optimizer, reference, STEPS) == 12


def test_target_above_the_start_is_its_own_start():
    model = make()
    settings = {**SETTINGS, "density": 0.7, "init": "er"}
    optimizer = wrap(model, method="granet", **settings)
    live = [layer.live for layer in optimizer.layers]
    assert live == [layer.target for layer in optimizer.layers]
    first = masks_of(optimizer)
    train(model, optimizer, STEPS, after=lambda _: assert_dropped_are_fresh(optimizer))
    assert sum(layer.live for layer in optimizer.layers) == sum(live)
    assert any((first[name] != mask).any() for name, mask in masks_of(optimizer).items())


def test_layers_given_a_density_start_at_half_or_at_theirs():
    model = make()
    init = {"conv1": 1.0, "conv2": 0.8, "fc1": 0.1}
    optimizer = wrap(model, method="granet", **{**SETTINGS, "init": init})
    densities = [round(layer.density, 1) for layer in optimizer.layers]
    assert densities == [1.0, 0.8, 0.5, 0.5]
    train(model, optimizer, STEPS)
    assert optimizer.masks["conv1.weight"].all()
    rest = optimizer.layers[1:]
    assert sum(layer.live for layer in rest) == sum(layer.target for layer in rest)


def test_no_weight_dropped_in_an_update_grows_in_it_if_regrow_is_never():
    model, optimizer, _ = wrapped("SGD", "auto", method=GraNet(regrow="never"))
    for t in range(1, STEPS + 1):
        old = masks_of(optimizer)
        train_step(model, optimizer, t)
        if optimizer.history and optimizer.history[-1].step == t:
            new = masks_of(optimizer)
            came = sum(int((new[name] & ~old[name]).sum()) for name in SPARSE_NAMES)
            assert came == optimizer.history[-1].grown


@pytest.mark.parametrize("set_to_none", [True, False])
def test_unused_layer_keeps_its_largest_weights(set_to_none):
    """With a gradient of zeros all candidates tie, and the lowest indices would grow."""
    model = make()
    optimizer = wrap(model, method="granet", decay="constant", **SETTINGS)
    ascending = np.argsort(np.abs(logical(model.fc1.weight)))
    for t in range(1, STEPS + 1):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(t))
        model.fc1.weight.grad = None if set_to_none else torch.zeros_like(model.fc1.weight)
        optimizer.step()
    live = np.flatnonzero(masks_of(optimizer)["fc1.weight"])
    assert 0 < len(live) < 0.5 * model.fc1.weight.numel()
    np.testing.assert_array_equal(live, np.sort(ascending[-len(live) :]))


def test_granet_needs_a_horizon_and_an_initial_density():
    model = make()
    settings = {**SETTINGS, "total_steps": None}
    optimizer = wrap(model, method="granet", **settings)
    with pytest.raises(ValueError, match="granet"):
        train_step(model, optimizer, 1)
    with pytest.raises(ValueError, match="initial=0"):
        GraNet(initial=0)


def test_cost_is_rigls_at_the_average_density():
    model, optimizer, _ = wrapped("SGD", "auto")
    inputs = torch.zeros(1, 3, 6, 6)
    costs = []
    for t in range(STEPS):
        costs.append(optimizer.flops(model, inputs).inference_sparse)
        train(model, optimizer, 1, start=t)
    report = optimizer.flops(model, inputs)
    mean = sum(costs) / STEPS
    assert report.train_sparse == pytest.approx((14 * mean + report.inference_dense) / 5)
    assert report.train_sparse > 3 * report.inference_sparse
