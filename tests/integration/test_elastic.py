"""Under torchrun a rank is killed in mid-run; all restart, and end like an uninterrupted run."""

import pytest
import torch

from tests.integration.elastic_worker import KILLED_AT, RUNS, SAVE_EVERY, STEPS
from tests.support.processes import finish, start
from tests.support.ranks import needs_gloo

RANKS = 2
# Else ranks that were started again find the addresses of the dead in the store, and may wait for
# them: https://github.com/pytorch/pytorch/issues/135712
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}

pytestmark = [needs_gloo, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The records of both ranks of both runs: uninterrupted, and with a killed rank."""
    folder = tmp_path_factory.mktemp("elastic")
    torchrun = ["--standalone", "--nproc-per-node", str(RANKS), "--max-restarts", "2"]
    worker = ["-m", "tests.integration.elastic_worker", str(folder)]
    finish([start("torch.distributed.run", *torchrun, *worker, env=OWN_STORE)])
    return folder


def seen_by_ranks(folder, run):
    return [torch.load(folder / run / f"rank-{rank}.pt") for rank in range(RANKS)]


def test_rank_was_killed_and_all_ranks_were_started_again_once(folder):
    assert (folder / "broken" / "killed").exists()
    for rank in range(RANKS):
        assert torch.load(folder / f"restarts-{rank}.pt") == {"restarts": 1}


def test_all_ranks_go_on_from_the_last_checkpoint_with_the_same_masks(folder):
    uninterrupted, broken = (seen_by_ranks(folder, run)[0] for run in ("uninterrupted", "broken"))
    first, second = seen_by_ranks(folder, "broken")
    last_save = KILLED_AT // SAVE_EVERY * SAVE_EVERY
    assert first["begun"] == second["begun"] == last_save > 0
    assert list(broken["masks"]) == list(range(last_save, STEPS + 1))
    for step, masks in first["masks"].items():
        for name, mask in masks.items():
            assert torch.equal(mask, second["masks"][step][name]), (name, step)
            assert torch.equal(mask, uninterrupted["masks"][step][name]), (name, step)


@pytest.mark.parametrize("rank", range(RANKS))
def test_end_is_that_of_the_uninterrupted_run_to_the_last_bit(folder, rank):
    uninterrupted, broken = (
        seen_by_ranks(folder, run)[rank]["outcome"] for run in ("uninterrupted", "broken")
    )
    for part in ("weights", "masks", "state"):
        assert uninterrupted[part].keys() == broken[part].keys()
        for name, tensor in uninterrupted[part].items():
            assert torch.equal(tensor, broken[part][name]), (part, name)
    assert uninterrupted["history"] == broken["history"]
    assert uninterrupted["steps"] == broken["steps"] == dict.fromkeys(RUNS, STEPS)
    for method in RUNS:
        steps = [record["step"] for record in broken["history"][method] if record["dropped"]]
        assert min(steps) < KILLED_AT < max(steps)
