"""Ranks whose method draws random numbers of its own are told that their masks would differ."""

import pytest
import torch

from sparseopt.distributed.choice_check import checksum, mixed
from tests.distributed.own_random import (
    AgreedNumbers,
    TorchsNumbers,
    TorchsValues,
    train,
    train_again_from_a_checkpoint,
)
from tests.support.ranks import needs_gloo, two_ranks


@needs_gloo
@pytest.mark.parametrize("method", [TorchsNumbers.name, TorchsValues.name])
def test_rank_that_would_choose_otherwise_raises_before_anything_moves(method):
    """The first rank to choose goes on; the other one knows that something is wrong."""
    answers = two_ranks().run(train, method)
    (wrong,) = (answer for answer in answers if answer["error"])
    assert f"method '{method}' chose different weights on rank" in wrong["error"]
    assert "update.random_scores(layer)" in wrong["error"]
    assert wrong["moved"] == []


@needs_gloo
@pytest.mark.parametrize(
    ("method", "same_seed"),
    [(AgreedNumbers.name, False), (TorchsNumbers.name, True), (TorchsValues.name, True)],
)
def test_ranks_that_choose_the_same_are_left_alone(method, same_seed):
    first, second = two_ranks().run(train, method, same_seed=same_seed)
    assert first["error"] is second["error"] is None
    assert first["updates"] == second["updates"] == 1
    assert all(torch.equal(mask, second["masks"][name]) for name, mask in first["masks"].items())


@needs_gloo
def test_ranks_that_train_apart_choose_for_themselves_and_do_not_wait():
    first, second = two_ranks().run(train, TorchsNumbers.name, together=False)
    assert first["error"] is second["error"] is None
    assert first["updates"] > second["updates"] >= 1
    assert any((first["masks"][name] != mask).any() for name, mask in second["masks"].items())


@needs_gloo
def test_ranks_that_go_back_to_a_checkpoint_may_draw_other_numbers_than_before():
    assert two_ranks().run(train_again_from_a_checkpoint, TorchsNumbers.name) == [2, 2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8])
def test_checksums_see_a_single_bit(dtype):
    values = torch.arange(1, 9).to(dtype)
    assert checksum(values) == checksum(values.flip(0)) == checksum(values.view(2, 4))
    other = values.clone()
    other.view(torch.uint8)[0] ^= 1
    assert checksum(values) != checksum(other)


def test_sums_of_mixed_positions_differ_for_sets_of_equal_sum():
    sets = [(1, 4), (2, 3), (0, 5), (0, 1, 4), (1, 4, 0, 0), ()]
    sums = [int(mixed(torch.tensor(one)).sum()) for one in sets]
    assert len(set(sums)) == len(sets)
