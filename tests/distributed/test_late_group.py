"""An optimizer that was made before the process group, so that ranks could not agree."""

import pytest
import torch

from tests.support.processes import finish, start
from tests.support.ranks import needs_gloo

pytestmark = needs_gloo


@pytest.fixture(scope="module")
def seen_by_both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("late")
    finish(
        [
            start("tests.distributed.late_group_worker", str(folder), env={"RANK": str(rank)})
            for rank in range(2)
        ]
    )
    return [torch.load(folder / f"late-{rank}.pt") for rank in range(2)]


def test_ranks_that_chose_different_masks_are_told_so_before_the_first_step(seen_by_both):
    for seen in seen_by_both:
        assert "before torch.distributed was initialised" in seen["unseeded"]["error"]
        assert seen["unseeded"]["steps"] == 0


def test_ranks_that_were_given_one_seed_train_alike(seen_by_both):
    first, second = (seen["seeded"] for seen in seen_by_both)
    assert first["updates"] == second["updates"] == 2
    for name, mask in first["masks"].items():
        assert torch.equal(mask, second["masks"][name]), name
