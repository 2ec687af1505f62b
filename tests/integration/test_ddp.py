"""DistributedDataParallel over two real processes, with other seeds and other data on each."""

import socket

import numpy as np
import pytest
import torch

from tests.integration.ddp_worker import METHODS, SETTINGS, STEPS, batch_number
from tests.integration.processes import finish, start
from tests.support.looking import logical
from tests.support.nets import SPARSE_NAMES, make
from tests.support.oracles import oracle_for

RANKS = 2
RUNS = [*METHODS, "seeded", "accumulated"]

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this torch has no gloo",
)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of the two ranks saw."""
    folder, port = tmp_path_factory.mktemp("ddp"), free_port()
    finish(
        [
            start(
                "tests.integration.ddp_worker",
                str(folder),
                env={
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                    "RANK": str(rank),
                    "WORLD_SIZE": str(RANKS),
                },
            )
            for rank in range(RANKS)
        ]
    )
    return [torch.load(folder / f"rank-{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("run", RUNS)
def test_masks_and_weights_are_the_same_on_both_ranks_at_all_times(ranks, run):
    first, second = (rank[run] for rank in ranks)
    for t in range(STEPS):
        for name, mask in first["masks"][t].items():
            assert torch.equal(mask, second["masks"][t][name]), (name, t + 1)
    for mine, theirs in zip(first["weights"], second["weights"], strict=True):
        for name, weight in mine.items():
            assert torch.equal(weight, theirs[name]), name
    for name in SPARSE_NAMES:
        mask = mask_of(first["masks"][-1], name)
        assert not first["weights"][-1][name][~mask].any()
    assert first["history"] == second["history"]
    assert (len(first["history"]) == 0) == (run == "static")


def mask_of(masks, name):
    """Layers may carry the wrapper's prefix or not."""
    return masks[name] if name in masks else masks[f"module.{name}"]


@pytest.mark.parametrize("run", RUNS)
def test_reduced_gradients_are_masked_on_ordinary_steps_and_the_dense_mean_on_update_steps(
    ranks, run
):
    """As `backward()` returns, so that clipping sees what the optimizer will use."""
    first, second = (rank[run] for rank in ranks)
    ordinary = updates = 0
    for t in range(STEPS):
        updating = first["updating"][t]
        assert updating == second["updating"][t]
        masks = first["masks"][t - 1] if t else first["masks"][0]
        remembered = run == "snfs" and t + 1 <= int(0.75 * STEPS)
        dense = remembered or (updating and run in {"rigl", "accumulated"})
        updates, ordinary = updates + updating, ordinary + (not updating)
        total = 0.0
        for name, gradient in first["gradients"][t].items():
            assert torch.equal(gradient, second["gradients"][t][name])
            expected = (first["local"][t][name] + second["local"][t][name]) / 2
            if name in SPARSE_NAMES and not dense:
                mask = mask_of(masks, name)
                assert not gradient[~mask].any(), (name, t + 1)
                expected = torch.where(mask, expected, 0.0)
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
            total += float((logical(expected) ** 2).sum())
        assert float(first["norm"][t]) == pytest.approx(total**0.5, rel=1e-3)
    assert ordinary >= 10
    assert (updates >= 2) == (run != "static")


def test_the_data_of_the_ranks_really_differ(ranks):
    """Guards the tests above: rank-local growth would have chosen other weights."""
    first, second = (rank["rigl"] for rank in ranks)
    for t in range(STEPS):
        local = first["local"][t]["fc1.weight"], second["local"][t]["fc1.weight"]
        assert not torch.allclose(*local)
        assert batch_number(0, t) != batch_number(1, t)


def test_rank_zeros_seed_decides_where_none_is_given(ranks):
    """The initial masks are those of rank 0's torch seed, on both ranks."""
    expected = oracle_for("static", make(), seed=100, **SETTINGS).masks
    for rank in ranks:
        for name, mask in expected.items():
            assert logical(mask_of(rank["static"]["masks"][0], name)).tolist() == mask.tolist()


@pytest.mark.parametrize("run", ["set", "seeded", "rigl", "pruning", "snfs", "accumulated"])
def test_masks_follow_from_the_averaged_gradients(ranks, run):
    """The oracle, given the gradient of both ranks together, makes the same masks."""
    seen = ranks[0][run]
    method = {"accumulated": "rigl", "seeded": "set"}.get(run, run)
    seed = 7 if run in {"accumulated", "seeded"} else 100
    oracle = oracle_for(method, make(), seed=seed, **SETTINGS)
    for t in range(1, STEPS + 1):
        assert oracle.is_update(t) == seen["updating"][t - 1]
        gradients = {name: logical(seen["gradients"][t - 1][name]) for name in SPARSE_NAMES}
        if oracle.is_update(t):
            weights = {name: logical(seen["weights"][t - 1][name]) for name in SPARSE_NAMES}
            oracle.update(t, weights, gradients)
        else:
            oracle.observe(t, gradients)
        for name in SPARSE_NAMES:
            mask = logical(mask_of(seen["masks"][t - 1], name))
            np.testing.assert_array_equal(mask, oracle.masks[name], err_msg=f"{name} at {t}")
