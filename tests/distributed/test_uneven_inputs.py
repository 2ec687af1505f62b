"""Ranks with different numbers of batches, under join(): an error wherever masks would differ."""

import pytest
import torch

from tests.distributed.uneven_inputs import (
    MOST,
    first_step,
    first_step_of_zero,
    later_update,
    masks_that_rest,
    stopped_together,
)
from tests.support.ranks import needs_gloo, two_ranks

pytestmark = needs_gloo


def assert_refused(answers):
    """On both ranks, so that none waits for the other one, and before anything moves."""
    for answer in answers:
        assert "different number of steps" in answer["said"]
        assert "drop_last=True" in answer["said"]
        assert "method='static'" in answer["said"]
        assert answer["moved"] == []
        assert answer["steps"] == 0


def assert_same_on_both(first, second):
    for part in ("weights", "masks"):
        for name, tensor in first[part].items():
            assert torch.equal(tensor, second[part][name]), (part, name)
    for seen in (first, second):
        for name, mask in seen["masks"].items():
            assert not mask.all()
            assert not seen["weights"][name][~mask].any()
    assert first["updates"] == second["updates"]


@pytest.mark.parametrize("method", ["set", "rigl"])
@pytest.mark.parametrize("passed", ["wrapped", "inside", "none"])
def test_first_step_in_join_raises_whichever_model_was_passed(passed, method):
    assert_refused(two_ranks().run(first_step, passed, method))


def test_first_step_raises_if_the_inner_optimizer_is_joined():
    answers = two_ranks().run(first_step_of_zero)
    assert_refused(answers)
    assert all("ZeroRedundancyOptimizer is in join()" in answer["said"] for answer in answers)


def test_update_in_join_raises_if_earlier_steps_were_not():
    assert_refused(two_ranks().run(later_update))


@pytest.mark.parametrize(("method", "before"), [("static", 0), ("set", 6)])
def test_masks_that_do_not_move_are_the_same_after_uneven_inputs(method, before):
    first, second = two_ranks().run(masks_that_rest, method)
    assert_same_on_both(first, second)
    assert (first["steps"], second["steps"]) == (before + MOST, before + MOST - 2)
    assert first["updates"] == ([4] if before else [])


def test_masks_may_move_in_a_join_that_stops_all_ranks_together():
    first, second = two_ranks().run(stopped_together)
    assert "Throwing across all ranks" in first["said"]
    assert "exhausted all inputs" in second["said"]
    assert_same_on_both(first, second)
    assert first["steps"] == second["steps"] == MOST - 2
    assert first["updates"] == [4]
