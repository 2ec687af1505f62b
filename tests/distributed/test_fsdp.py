"""FSDP2 over real processes: a sharded weight is one layer, on any number of ranks."""

import copy
import re

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

from sparseopt import SparseOptimizer, load_sparse, save_sparse
from sparseopt.masks.live_copies import SMALL
from sparseopt.speedup import kernels
from tests.distributed.fsdp_worker import (
    CHECKPOINTED,
    RUNS,
    SETTINGS,
    STEPS,
    STOP,
    LargeNet,
    begin,
    dense,
    outcome,
)
from tests.distributed.fsdp_worker import train as train_here
from tests.support.looking import logical
from tests.support.nets import SPARSE_NAMES, make
from tests.support.oracles import oracle_for
from tests.support.processes import finish, free_port, start

pytestmark = [
    pytest.mark.skipif(
        not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
        reason="this torch has no gloo",
    ),
]

RUN_IDS = ["-".join(run) for run in RUNS]
#: For the other methods it is proof enough that they train as one process does.
BY_ORACLE = [run for run in RUNS if run[0] in {"static", "set", "rigl", "pruning"}]
ORACLE_IDS = ["-".join(run) for run in BY_ORACLE]
CHECKPOINT_IDS = ["-".join(run) for run in CHECKPOINTED]


def launch(folder, ranks: int, *jobs: str) -> dict:
    """The result of each job on rank 0, for this number of ranks."""
    port = free_port()
    finish(
        [
            start(
                "tests.distributed.fsdp_worker",
                str(folder),
                *jobs,
                env={
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                    "RANK": str(rank),
                    "WORLD_SIZE": str(ranks),
                },
            )
            for rank in range(ranks)
        ]
    )
    return {job: torch.load(folder / f"{job}-{ranks}.pt") for job in jobs}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fsdp")


@pytest.fixture(scope="module")
def two(folder):
    return launch(
        folder,
        2,
        "runs",
        "tensor_parallel",
        "replaced",
        "one_bad_shard",
        "save",
        "resume",
        "from_unsharded",
        "costs",
        "refused",
    )


@pytest.fixture(scope="module")
def resumed(folder, two):
    """The checkpoints of two ranks, resumed on one, two and three."""
    return {
        1: launch(folder, 1, "resume")["resume"],
        2: two["resume"],
        3: launch(folder, 3, "resume")["resume"],
    }


@pytest.fixture(scope="module")
def four(folder):
    return launch(folder, 4, "replicas", "both_kinds")


def assert_close(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=1e-9, atol=1e-11)


def assert_equal(left: dict, right: dict) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def assert_as_one_process(seen, method, optimizer):
    """Compare every step of sharded training with unsharded training, and return the latter."""
    model = dense()
    expected = train_here(model, begin(model, method, optimizer, state="masked"), 0, STEPS)
    assert seen["sharded"] == ["DTensor"] * len(SPARSE_NAMES)
    for t in range(STEPS):
        assert_equal(seen["masks"][t], expected["masks"][t])
        assert_close(seen["weights"][t], expected["weights"][t])
    assert_close(seen["final"], expected["final"])
    assert seen["history"] == expected["history"]
    return expected


@pytest.mark.parametrize("run", RUNS, ids=RUN_IDS)
def test_sharded_training_equals_one_process_on_the_joined_batch(two, run):
    """In double precision, where another order of sums makes no other choice."""
    seen = two["runs"][run]
    assert_as_one_process(seen, *run)
    assert (len(seen["history"]) == 0) == (run[0] == "static")


@pytest.mark.parametrize("run", BY_ORACLE, ids=ORACLE_IDS)
def test_drop_and_grow_are_over_all_shards_of_a_layer(two, run):
    """The oracle gets full weights and full gradients, and makes the same masks."""
    seen, (method, _) = two["runs"][run], run
    oracle = oracle_for(method, dense(), seed=3, **SETTINGS)
    for t in range(1, STEPS + 1):
        if oracle.is_update(t):
            weights = {name: logical(seen["weights"][t - 1][name]) for name in SPARSE_NAMES}
            gradients = {name: logical(seen["gradients"][t - 1][name]) for name in SPARSE_NAMES}
            oracle.update(t, weights, gradients)
        for name in SPARSE_NAMES:
            mask = logical(seen["masks"][t - 1][name])
            np.testing.assert_array_equal(mask, oracle.masks[name], err_msg=f"{name} at {t}")


def test_costs_are_those_of_one_process_and_counting_changes_nothing(two):
    model = dense()
    optimizer = begin(model, "rigl", "SGD", state="masked")
    train_here(model, optimizer, 0, STOP)
    assert two["costs"]["report"] == optimizer.flops().as_dict()
    assert_equal(two["costs"]["final"], two["runs"]["rigl", "SGD"]["final"])


def test_choice_by_each_rank_alone_would_have_been_another(two):
    """Guards the test above: the live counts of shards change."""
    masks = two["runs"]["rigl", "SGD"]["masks"]
    halves = [int(step["fc1.weight"].chunk(2)[0].sum()) for step in masks]
    assert len(set(halves)) > 1
    assert len({int(step["fc1.weight"].sum()) for step in masks}) == 1


@pytest.mark.parametrize("run", RUNS, ids=RUN_IDS)
def test_dropped_weights_and_their_state_stay_fresh_on_every_shard(two, run):
    seen = two["runs"][run]
    fresh = {"sum": 0.25}  # Adagrad starts there
    for name in SPARSE_NAMES:
        for t in range(STEPS - 1):
            assert not seen["weights"][t + 1][name][~seen["masks"][t][name]].any(), (name, t)
        mask = seen["final_masks"][name]
        assert seen["live"][name] == int(mask.sum())
        for key, value in seen["state"][name].items():
            if value.shape == mask.shape:
                assert (value[~mask] == fresh.get(key, 0.0)).all(), (name, key)
                assert (value[mask] != fresh.get(key, 0.0)).any(), (name, key)


@pytest.mark.parametrize("run", BY_ORACLE, ids=ORACLE_IDS)
def test_gradients_are_masked_but_for_update_steps_and_clipping_sees_live_ones(two, run):
    seen, (method, _) = two["runs"][run], run
    updates = 0
    for t in range(1, STEPS):
        dense_now = seen["updating"][t] and method == "rigl"
        updates += dense_now
        dropped = {n: seen["gradients"][t][n][~seen["masks"][t - 1][n]] for n in SPARSE_NAMES}
        assert any(bool(values.any()) for values in dropped.values()) == dense_now, t + 1
        squares = sum(float((g**2).sum()) for g in seen["gradients"][t].values())
        assert seen["norm"][t] == pytest.approx(squares**0.5)
    assert (updates >= 2) == (method == "rigl")


def test_bad_shard_on_one_rank_skips_the_update_on_all(two):
    seen = two["one_bad_shard"]
    assert [record["skipped"] for record in seen["history"]] == [True]
    assert ["not finite at step 4" in message for message in seen["said"]] == [True]
    assert_equal(seen["final_masks"], seen["before"])
    assert_equal(seen["final"], seen["weights"])
    assert seen["steps"] == 4


def test_parameters_that_are_replaced_after_wrapping_are_followed(two):
    """Gradients are masked from the first step on, and training equals the usual order."""
    seen, model = two["replaced"], dense()
    inner = torch.optim.AdamW(model.parameters(), lr=0.01)
    optimizer = SparseOptimizer(inner, model, method="rigl", seed=3, **SETTINGS)
    expected = train_here(model, optimizer, 0, STEPS)
    assert seen["sharded"] == ["DTensor"] * len(SPARSE_NAMES)
    for t in range(STEPS):
        assert_equal(seen["masks"][t], expected["masks"][t])
        assert_close(seen["gradients"][t], expected["gradients"][t])
    assert_close(seen["final"], expected["final"])


def test_tensor_parallel_weights_train_as_in_one_process(two):
    """Weights sharded by rows and by columns, beside weights that are not sharded."""
    seen, model = two["tensor_parallel"], dense()
    expected = train_here(model, begin(model, "rigl", "AdamW"), 0, STEPS)
    assert seen["sharded"] == ["Tensor", "Tensor", "DTensor", "DTensor"]
    for t in range(STEPS):
        assert_equal(seen["masks"][t], expected["masks"][t])
        assert_close(seen["gradients"][t], expected["gradients"][t])
    assert_close(seen["final"], expected["final"])
    assert seen["history"] == expected["history"]


@pytest.mark.skipif(not kernels.available(), reason="no kernels here")
def test_large_sharded_layer_trains_as_in_one_process_where_kernels_are_built(folder):
    """The kernels copy live weights of such a layer where it is not sharded; here torch does."""
    seen = launch(folder, 2, "large")["large"]
    model = make(LargeNet, dtype=torch.float64)
    assert seen["has_kernels"]
    assert model.fc1.weight.numel() > SMALL
    expected = train_here(model, begin(model, "rigl", "AdamW", state="masked"), 0, STEPS)
    assert seen["sharded"] == ["DTensor", "DTensor"]
    for t in range(STEPS):
        assert_equal(seen["masks"][t], expected["masks"][t])
        assert_close(seen["weights"][t], expected["weights"][t])
        assert_close(seen["gradients"][t], expected["gradients"][t])
    assert_close(seen["final"], expected["final"])
    assert seen["history"] == expected["history"]
    assert any(record["new"] > 0 for record in seen["history"])


def test_replicas_of_shards_agree_whatever_the_ranks_seeds(four):
    """Rank 0's seed decides; four ranks train as one process."""
    seen = four["replicas"]
    torch.manual_seed(100)
    model = dense()
    expected = train_here(model, begin(model, "set", "AdamW", seed=None), 0, STEPS)
    assert_equal(seen["final_masks"], expected["final_masks"])
    assert_close(seen["final"], expected["final"])
    assert seen["history"] == expected["history"]


def test_fsdp2_over_tensor_parallel_trains_as_one_process(four):
    """A weight that is spread along both dimensions of the mesh counts once."""
    expected = assert_as_one_process(four["both_kinds"], "rigl", "AdamW")
    assert four["both_kinds"]["explored"] == expected["explored"]


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("run", CHECKPOINTED, ids=CHECKPOINT_IDS)
def test_checkpoint_of_two_ranks_is_resumed_on_any_number(two, resumed, run, ranks):
    saved, loaded = two["save"][run]["saved"], resumed[ranks][run]["loaded"]
    for part in ("final", "final_masks"):
        assert_equal(loaded[part], saved[part])
    for part in ("live", "explored", "history", "steps"):
        assert loaded[part] == saved[part], part
    assert saved["steps"] == STOP
    for name, state in saved["state"].items():
        assert_equal(loaded["state"][name], state)

    uninterrupted, rest = two["save"][run], resumed[ranks][run]
    same = assert_equal if ranks == 2 else assert_close
    same(rest["final"], uninterrupted["final"])
    assert_equal(rest["final_masks"], uninterrupted["final_masks"])
    assert rest["history"] == uninterrupted["history"]
    assert rest["history"][-1]["step"] > STOP


@pytest.mark.parametrize("state", ["live", "masked"])
@pytest.mark.parametrize("run", CHECKPOINTED, ids=CHECKPOINT_IDS)
def test_whole_checkpoint_of_two_ranks_is_resumed_without_any(two, run, state):
    """`full_state_dict=True`, loaded by `load_state_dict()` where nothing is sharded."""
    weights, whole_state = copy.deepcopy(two["save"][run]["whole"])
    model = dense(seed=1)
    optimizer = begin(model, *run, seed=8, state=state)
    model.load_state_dict(weights)
    optimizer.load_state_dict(whole_state)
    saved, loaded = two["save"][run]["saved"], outcome(model, optimizer)
    for part in ("final", "final_masks"):
        assert_equal(loaded[part], saved[part])
    for part in ("live", "explored", "history", "steps"):
        assert loaded[part] == saved[part], part
    rest = train_here(model, optimizer, STOP, STEPS)
    assert_close(rest["final"], two["save"][run]["final"])
    assert_equal(rest["final_masks"], two["save"][run]["final_masks"])


@pytest.mark.parametrize("state", ["live", "masked"])
@pytest.mark.parametrize("run", CHECKPOINTED, ids=CHECKPOINT_IDS)
def test_converted_checkpoint_of_two_ranks_is_resumed_without_any(
    two, folder, tmp_path, run, state
):
    """As the page on many processes converts it."""
    dcp_to_torch_save(folder / "-".join(run), tmp_path / "whole.pt")
    saved = torch.load(tmp_path / "whole.pt")
    model = dense(seed=1)
    optimizer = begin(model, *run, seed=8, state=state)
    set_state_dict(
        model,
        optimizer,
        model_state_dict=saved["model"],
        optim_state_dict=saved["optimizer"],
        options=StateDictOptions(full_state_dict=True),
    )
    rest = train_here(model, optimizer, STOP, STEPS)
    assert_close(rest["final"], two["save"][run]["final"])
    assert_equal(rest["final_masks"], two["save"][run]["final_masks"])
    assert rest["history"] == two["save"][run]["history"]


@pytest.mark.parametrize("state", ["live", "masked"])
def test_whole_checkpoint_without_shards_is_resumed_on_two_ranks(two, state):
    """`full_state_dict=True` in both directions; every rank has the checkpoint."""
    seen = two["from_unsharded"][state]
    saved, loaded = seen["saved"], seen["loaded"]
    for part in ("final", "final_masks"):
        assert_equal(loaded[part], saved[part])
    for part in ("live", "explored", "history", "steps"):
        assert loaded[part] == saved[part], part
    assert loaded["sharded"] == ["DTensor"] * len(SPARSE_NAMES)
    resumed, uninterrupted = seen["resumed"], seen["uninterrupted"]
    assert_close(resumed["final"], uninterrupted["final"])
    assert_equal(resumed["final_masks"], uninterrupted["final_masks"])
    assert resumed["history"] == uninterrupted["history"]
    assert resumed["explored"] == uninterrupted["explored"]


@pytest.fixture(scope="module")
def files(folder):
    pytest.importorskip("safetensors")
    return launch(folder, 2, "sparse_files")["sparse_files"]


@pytest.mark.parametrize("masks", ["optimizer", "masks", "nonzero"])
def test_sparse_file_of_a_sharded_model_is_the_file_of_the_whole_model(files, folder, masks):
    safetensors = pytest.importorskip("safetensors.torch")
    saved, loaded = files["saved"], dense(seed=1)
    load_sparse(folder / f"{masks}.safetensors", loaded)
    assert_equal(dict(loaded.named_parameters()), saved["final"])
    whole_model = dense()
    whole_model.load_state_dict(saved["final"])
    given = "nonzero" if masks == "nonzero" else saved["final_masks"]
    save_sparse(folder / "whole.safetensors", whole_model, given)
    stored = safetensors.load_file(folder / "whole.safetensors")
    assert_equal(safetensors.load_file(folder / f"{masks}.safetensors"), stored)


def test_sparse_file_is_loaded_into_a_sharded_model(files):
    assert_equal(files["loaded"], files["saved"]["final"])


def test_file_that_the_first_rank_cannot_write_is_an_error_on_every_rank(files):
    assert files["errors"] == ["FileNotFoundError", "RuntimeError"]


def test_masks_of_a_sharded_model_are_applied_to_a_plain_copy(files):
    """The copy is zero where the masks drop, and unchanged elsewhere; training goes on."""
    masks = files["saved"]["final_masks"]
    for name, weight in dense(seed=2).named_parameters():
        expected = torch.where(masks[name], weight, 0) if name in masks else weight
        assert torch.equal(files["copied"][name], expected), name
    model = dense()
    expected = train_here(model, begin(model, "rigl", "AdamW", state="masked"), 0, STEPS)
    assert_close(files["final"], expected["final"])


def test_live_state_is_refused_for_sharded_weights_with_the_reason(two):
    assert re.search("state='live' .* sharded weights .*state='auto'", two["refused"])
