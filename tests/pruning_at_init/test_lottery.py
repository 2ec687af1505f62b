"""Runs that start where another ended: lottery tickets, re-initialisation, warm starts."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.utils import prune

from sparseopt import SparseOptimizer, final_masks, shuffle_masks
from tests.oracle import largest
from tests.support import wrapping
from tests.support.catalogue import build
from tests.support.looking import assert_dropped_are_fresh, logical, masks_of
from tests.support.nets import SPARSE_NAMES, make
from tests.support.training import train

STEPS = 40
wrap = partial(wrapping.wrap, total_steps=STEPS, delta_t=4)


def finished(method):
    model = make()
    start = copy.deepcopy(model.state_dict())
    optimizer = wrap(model, method=method)
    train(model, optimizer, STEPS)
    return model, optimizer, start


def test_lottery_ticket_has_the_masks_of_the_end_and_the_weights_of_the_start():
    model, pruned, start = finished("pruning")
    ticket = final_masks(pruned)
    pruned.detach()
    model.load_state_dict(start)
    retrained = wrap(model, method="static", mask=ticket)
    for name in SPARSE_NAMES:
        expected = torch.where(ticket[name], start[name], 0.0)
        assert torch.equal(dict(model.named_parameters())[name], expected)
    train(model, retrained, 20, after=lambda _: assert_dropped_are_fresh(retrained))
    for name, mask in ticket.items():
        assert torch.equal(retrained.masks[name], mask)
        assert not torch.equal(dict(model.named_parameters())[name], start[name])


def test_ticket_is_a_copy():
    _, optimizer, _ = finished("rigl")
    ticket = final_masks(optimizer)
    before = masks_of(optimizer)
    for mask in ticket.values():
        mask.fill_(False)
    for name, mask in masks_of(optimizer).items():
        np.testing.assert_array_equal(mask, before[name])


def test_final_masks_are_refused_before_the_end():
    model = make()
    optimizer = wrap(model, method="pruning")
    train(model, optimizer, 20)
    with pytest.raises(ValueError, match="step 20"):
        final_masks(optimizer)


def test_shuffled_masks_keep_each_layers_count_and_nothing_else():
    _, pruned, _ = finished("pruning")
    ticket = final_masks(pruned)
    shuffled = shuffle_masks(ticket, seed=1)
    assert shuffled.keys() == ticket.keys()
    for name, mask in ticket.items():
        assert shuffled[name].shape == mask.shape
        assert shuffled[name].dtype == torch.bool
        assert int(shuffled[name].sum()) == int(mask.sum())
    sparse = {name: mask for name, mask in ticket.items() if not mask.all()}
    live = sum(int(mask.sum()) for mask in sparse.values())
    stayed = sum(int((mask & shuffled[name]).sum()) for name, mask in sparse.items())
    by_chance = sum(int(mask.sum()) ** 2 / mask.numel() for mask in sparse.values())
    assert abs(stayed - by_chance) < 4 * live**0.5
    again, other = shuffle_masks(ticket, seed=1), shuffle_masks(ticket, seed=2)
    assert all(torch.equal(again[name], mask) for name, mask in shuffled.items())
    assert any(not torch.equal(other[name], mask) for name, mask in shuffled.items())
    model = make()
    assert wrap(model, method="static", mask=shuffled).density == pruned.density


def test_rigl_with_re_initialisation_starts_from_the_budgets_that_redistribution_found():
    """The report's RigL-reinit: the masks that RigL-SM ended with, new weights, plain RigL."""
    _, first, _ = finished("rigl-sm")
    model = make(seed=8)
    fresh = {name: p.detach().clone() for name, p in model.named_parameters()}
    second = wrap(model, method="rigl", mask=final_masks(first))
    budgets = {layer.name: layer.live for layer in first.layers}
    for name in SPARSE_NAMES:
        mask = first.masks[name]
        assert torch.equal(dict(model.named_parameters())[name], torch.where(mask, fresh[name], 0))
    train(model, second, STEPS)
    assert {layer.name: layer.live for layer in second.layers} == budgets
    assert any(not torch.equal(second.masks[n], first.masks[n]) for n in SPARSE_NAMES)


def test_warm_start_prunes_a_dense_model_by_magnitude_and_moves_on_by_rigl():
    model = make()
    dense = build("SGD", model.parameters())
    train(model, dense, 20)
    before = {name: logical(p) for name, p in model.named_parameters()}
    optimizer = wrap(model, method="rigl", mask="magnitude")
    for layer in optimizer.layers:
        expected = largest(np.abs(before[layer.name]), layer.target)
        np.testing.assert_array_equal(logical(layer.mask), expected)
        kept = np.where(expected, before[layer.name], 0.0)
        np.testing.assert_array_equal(logical(layer.weight), kept)
    first = masks_of(optimizer)
    train(model, optimizer, STEPS, after=lambda _: assert_dropped_are_fresh(optimizer))
    assert all(layer.live == layer.target for layer in optimizer.layers)
    assert any((first[name] != mask).any() for name, mask in masks_of(optimizer).items())


def pruned_by_torch():
    """A model after torch's one-shot pruner, with another share of zeros in each layer."""
    model = make()
    amounts = {"conv1": 0.3, "conv2": 0.85, "fc1": 0.97}
    for name, amount in amounts.items():
        prune.l1_unstructured(getattr(model, name), "weight", amount=amount)
        prune.remove(getattr(model, name), "weight")
    return model


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_static_fine_tunes_a_pruned_model_and_keeps_its_zeros(name, state):
    model = pruned_by_torch()
    zeros = {n: logical(p) == 0 for n, p in model.named_parameters() if n in SPARSE_NAMES}
    optimizer = SparseOptimizer(
        build(name, model.parameters()), model, method="static", mask="nonzero", state=state
    )
    densities = [round(layer.density, 2) for layer in optimizer.layers]
    assert densities == [0.7, 0.15, 0.03, 1.0]
    before = {n: logical(p) for n, p in model.named_parameters()}
    train(model, optimizer, 20)
    for n, zero in zeros.items():
        now = logical(dict(model.named_parameters())[n])
        assert not now[zero].any()
        assert (now[~zero] != before[n][~zero]).any()


def test_rigl_moves_a_pruned_model_on_at_the_density_of_each_layer():
    model = pruned_by_torch()
    optimizer = wrap(model, method="rigl", mask="nonzero")
    live, first = [layer.live for layer in optimizer.layers], masks_of(optimizer)
    train(model, optimizer, STEPS, after=lambda _: assert_dropped_are_fresh(optimizer))
    assert [layer.live for layer in optimizer.layers] == live
    last = masks_of(optimizer)
    assert [bool((first[n] != last[n]).any()) for n in SPARSE_NAMES] == [True, True, True, False]
