"""ZeRO, post-local SGD and the first FSDP, in two real processes."""

import pytest
import torch

from tests.integration.wrapper_ranks import (
    first_fsdp,
    post_local_sgd,
    zero_beside_plain,
    zero_redundancy,
    zero_that_overlaps,
    zero_with_live_state,
    zero_without_consolidation,
)
from tests.support.ranks import needs_gloo, two_ranks

pytestmark = needs_gloo


def assert_same(left, right):
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("method", ["static", "rigl"])
def test_zero_redundancy_trains_as_adam_does_and_resumes(method):
    first, second = two_ranks().run(zero_redundancy, method, 9, 10)
    for seen in (first, second):
        assert_same(seen["adam"], seen["zero"])
        assert_same(seen["zero"], seen["resumed"])
        assert seen["fresh"] == [True, True]
        for name, mask in seen["masks"].items():
            assert not seen["zero"][name][~mask].any()
    assert_same(first["resumed"], second["resumed"])
    assert_same(first["masks"], second["masks"])


@pytest.mark.parametrize(
    ("name", "options"),
    [("Rprop", {"lr": 0.05}), ("Adagrad", {"lr": 0.05, "initial_accumulator_value": 0.1})],
)
def test_grown_weights_start_under_zero_as_under_the_optimizer_inside(name, options):
    for seen in two_ranks().run(zero_beside_plain, name, options, 20):
        assert_same(seen["plain"], seen["zero"])


def test_zero_around_an_optimizer_that_factorises_matrices_cannot_have_live_state():
    for message in two_ranks().run(zero_with_live_state):
        assert "an update that is not element-wise" in message


def test_zero_redundancy_says_what_to_call_before_saving():
    for message in two_ranks().run(zero_without_consolidation):
        assert "consolidate_state_dict" in message


def test_zero_redundancy_that_overlaps_with_ddp_is_refused_with_the_reason():
    for message in two_ranks().run(zero_that_overlaps):
        assert "overlap_with_ddp=True" in message
        assert "steps inside the hooks" in message
        assert "Leave overlap_with_ddp out" in message


def test_post_local_sgd_averages_over_equal_masks():
    first, second = two_ranks().run(post_local_sgd, "static", 13)
    for seen in (first, second):
        assert_same(seen["run"], seen["by hand"])
        assert seen["said"] == []
        for name, mask in seen["masks"].items():
            assert not seen["run"][name][~mask].any()
    assert_same(first["run"], second["run"])


def test_post_local_sgd_with_masks_that_move_is_warned_of():
    for seen in two_ranks().run(post_local_sgd, "rigl", 1):
        (message,) = seen["said"]
        assert "PostLocalSGDOptimizer" in message
        assert "method='static'" in message


@pytest.mark.parametrize(
    ("when", "use_orig_params"),
    [(when, own) for when in ("before", "without model") for own in (True, False)]
    + [("after", True)],
)
def test_first_fsdp_is_refused_by_name(when, use_orig_params):
    for message in two_ranks().run(first_fsdp, when, use_orig_params):
        assert "FullyShardedDataParallel" in message
        assert "fully_shard" in message


def test_model_whose_weights_the_first_fsdp_took_is_warned_of():
    """Without ``use_orig_params`` the optimizer has no parameter of the model."""
    for message in two_ranks().run(first_fsdp, "after", use_orig_params=False):
        assert "no longer a parameter of the model" in message
