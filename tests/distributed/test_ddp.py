"""DistributedDataParallel over two real processes, with different seeds and data on each."""

from functools import cache

import numpy as np
import pytest
import torch

from tests.distributed.ddp_worker import METHODS, RUNS, SETTINGS, STEPS, Run, batch_number, train
from tests.support.looking import logical
from tests.support.nets import make
from tests.support.oracles import oracle_for
from tests.support.ranks import needs_gloo, two_ranks

pytestmark = needs_gloo

every_run = pytest.mark.parametrize("name", RUNS)


@cache
def seen_by_both(name):
    """The records of a run on each of the two ranks."""
    return two_ranks().run(train, RUNS[name])


@every_run
def test_masks_and_weights_are_the_same_on_both_ranks_at_all_times(name):
    first, second = seen_by_both(name)
    for what in ("masks", "weights"):
        assert len(first[what]) == STEPS + 1
        for t, (mine, theirs) in enumerate(zip(first[what], second[what], strict=True)):
            for layer, tensor in mine.items():
                # The weights of rank 0 reach the other rank when the model is wrapped.
                assert torch.equal(tensor, theirs[layer]), (what, layer, t)
    for weights, masks in zip(first["weights"], first["masks"], strict=True):
        for layer in RUNS[name].names:
            assert not weights[layer][~masks[layer]].any()
    assert first["history"] == second["history"]
    assert (len(first["history"]) == 0) == (name == "static")


def reads_dense_gradients(run, t, updating):
    """SNFS reads dense gradients until masks stop; RigL and SRigL on update steps."""
    if run.method == "snfs":
        return t <= int(0.75 * STEPS)
    return updating and run.method in {"rigl", "srigl"}


@every_run
def test_reduced_gradients_are_masked_on_ordinary_steps_and_the_dense_mean_on_update_steps(name):
    """Gradients are masked when `backward()` returns, so clipping sees what the optimizer uses."""
    run = RUNS[name]
    first, second = seen_by_both(name)
    assert first["updating"] == second["updating"]
    for t, (gradients, masks) in enumerate(
        zip(first["gradients"], first["masks"][:-1], strict=True)
    ):
        total = 0.0
        for layer, gradient in gradients.items():
            expected = mean_of_ranks(first["local"][t], second["local"][t], layer)
            if expected is None:
                assert gradient is None
                assert second["gradients"][t][layer] is None
                continue
            assert torch.equal(gradient, second["gradients"][t][layer])
            dense = reads_dense_gradients(run, t + 1, first["updating"][t])
            if layer in run.names and not dense:
                assert not gradient[~masks[layer]].any(), (layer, t + 1)
                expected = torch.where(masks[layer], expected, 0.0)
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
            total += float((logical(expected) ** 2).sum())
        assert float(first["norm"][t]) == pytest.approx(total**0.5, rel=1e-3)
    assert first["updating"].count(False) >= 10
    assert (first["updating"].count(True) >= 2) == (run.method != "static")


def mean_of_ranks(first, second, name):
    """The mean of a gradient over both ranks; a missing gradient counts as zero."""
    present = [local[name] for local in (first, second) if name in local]
    return sum(present) / 2 if present else None


def test_data_of_the_ranks_really_differ():
    """Guards the tests above: rank-local growth would have chosen other weights."""
    first, second = seen_by_both("rigl")
    for t in range(STEPS):
        local = first["local"][t]["fc1.weight"], second["local"][t]["fc1.weight"]
        assert not torch.allclose(*local)
        assert batch_number(0, t) != batch_number(1, t)


def test_extra_layer_is_used_by_both_ranks_by_one_and_by_none():
    """Guards the tests above: gradients of no rank, or of one rank only, meet update steps too."""
    first, second = seen_by_both("unused parameters")
    used = [
        sum("extra.weight" in local for local in both)
        for both in zip(first["local"], second["local"], strict=True)
    ]
    assert set(used) == {0, 1, 2}
    updating = {count for count, update in zip(used, first["updating"], strict=True) if update}
    assert updating >= {0, 1}


def test_rank_zeros_seed_decides_where_none_is_given():
    """Both ranks have the initial masks of rank 0's torch seed."""
    expected = oracle_for("static", make(), seed=100, **SETTINGS).masks
    for seen in seen_by_both("static"):
        for name, mask in expected.items():
            assert logical(seen["masks"][0][name]).tolist() == mask.tolist()


@pytest.mark.parametrize("name", [name for name in RUNS if RUNS[name].method != "static"])
def test_masks_follow_from_the_averaged_gradients(name):
    """The oracle, given the gradient of both ranks together, makes the same masks."""
    run: Run = RUNS[name]
    seen = seen_by_both(name)[0]
    seed = 100 if run.seed is None else run.seed
    oracle = oracle_for(run.method, make(run.kind), seed=seed, names=run.names, **SETTINGS)
    for t in range(1, STEPS + 1):
        assert oracle.is_update(t) == seen["updating"][t - 1]
        gradients = {
            layer: None if gradient is None else logical(gradient)
            for layer, gradient in seen["gradients"][t - 1].items()
            if layer in run.names
        }
        if oracle.is_update(t):
            weights = {layer: logical(seen["weights"][t - 1][layer]) for layer in run.names}
            oracle.update(t, weights, gradients)
        else:
            oracle.observe(t, gradients)
        for layer in run.names:
            mask = logical(seen["masks"][t][layer])
            np.testing.assert_array_equal(mask, oracle.masks[layer], err_msg=f"{layer} at {t}")


def test_every_method_is_among_the_runs():
    assert {run.method for run in RUNS.values()} == set(METHODS)
