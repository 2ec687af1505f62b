"""A speed-up in two real processes."""

from functools import cache

import pytest
import torch

from tests.speedup.kernels.dense import needs_kernels
from tests.speedup.live_training.ddp_worker import refused, sharded_later, train
from tests.support.ranks import needs_gloo, two_ranks

pytestmark = [needs_gloo, needs_kernels]


@cache
def seen_by_both(**settings):
    return two_ranks().run(train, **settings)


@pytest.mark.parametrize(
    "settings",
    [{"fast": True}, {"fast": True, "accumulate": 2}, {"fast": True, "measured": True}],
    ids=str,
)
def test_ranks_train_the_same_model(settings):
    first, second = seen_by_both(**settings)
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name])
    for mine, theirs in zip(first["masks"], second["masks"], strict=True):
        for name, mask in mine.items():
            assert torch.equal(mask, theirs[name])
    assert first["losses"] != second["losses"]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_are_those_of_dense_training_until_masks_move(accumulate):
    fast, _ = seen_by_both(fast=True, accumulate=accumulate)
    dense, _ = seen_by_both(fast=False, accumulate=accumulate)
    assert fast["updating"] == dense["updating"]
    assert sum(fast["updating"]) == 2
    for step, (mine, theirs) in enumerate(zip(fast["gradients"], dense["gradients"], strict=True)):
        for name, gradient in mine.items():
            mask = fast["masks"][step][name]
            assert bool(gradient[~mask].any()) <= fast["updating"][step]
            if step < 6:
                torch.testing.assert_close(gradient, theirs[name], rtol=2e-2, atol=1e-4)
    update = fast["updating"].index(True)
    grads, masks = fast["gradients"][update], fast["masks"][update]
    assert all(grads[name][~mask].any() for name, mask in masks.items() if not mask.all())


def test_weights_spread_over_ranks_are_refused():
    for message in two_ranks().run(refused):
        assert "sharded over processes" in message


def test_speed_up_ends_when_shards_replace_the_weights():
    for seen in two_ranks().run(sharded_later):
        assert seen == {"ended": True, "stem": "Conv2d"}
