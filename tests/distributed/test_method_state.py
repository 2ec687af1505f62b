"""Masks that depend on a method's own state are equal on two real processes."""

import pytest
import torch

from tests.distributed.method_state import STEPS, STOP, train
from tests.support.own_methods import FrequentGradient, SmoothedSalience
from tests.support.ranks import needs_gloo, two_ranks

pytestmark = needs_gloo


def assert_same(mine, theirs):
    for what in ("masks", "layers"):
        assert mine[what].keys() == theirs[what].keys()
        for key, tensor in mine[what].items():
            assert torch.equal(tensor, theirs[what][key]), (what, key)
    assert mine["run"] == theirs["run"]


@pytest.mark.parametrize("optimizer_first", [False, True])
@pytest.mark.parametrize("method", [SmoothedSalience.name, FrequentGradient.name])
def test_ranks_have_the_same_state_and_resume_from_what_rank_zero_saved(method, optimizer_first):
    """``frequent-gradient`` begins at random, from another torch seed on each rank."""
    first, second = two_ranks().run(train, method, optimizer_first=optimizer_first)
    assert len(first["seen"]) == STEPS + 1
    for mine, theirs in zip(first["seen"], second["seen"], strict=True):
        assert_same(mine, theirs)
    for run in (first, second):
        for whole, resumed in zip(run["seen"][STOP + 1 :], run["resumed"], strict=True):
            assert_same(whole, resumed)
    assert first["updates"] == second["updates"] >= 2
    begun, ended = first["seen"][0], first["seen"][-1]
    assert begun["layers"]
    assert any((begun["masks"][name] != mask).any() for name, mask in ended["masks"].items())
