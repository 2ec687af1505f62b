"""Accelerate: real runs in processes of their own, against a loop without it."""

from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F

from tests.integration.accelerate_runs import (
    ONE_PROCESS,
    SAVED_AT,
    SEED_OF_RANK_ZERO,
    TWO_RANKS,
    Run,
)
from tests.integration.frameworks import (
    LR,
    MAX_NORM,
    RECORDED,
    SETTINGS,
    STEPS,
    STEPS_PER_EPOCH,
    assert_masks_hold,
    assert_same_outcome,
    assert_same_run,
    autocast_to,
    by_hand,
    clipped_norms,
    counts_of,
    flops_by_hand,
    live_counts,
    plan,
)
from tests.support.nets import batch, loss_of, make
from tests.support.oracles import oracle_for
from tests.support.processes import finish, free_port, start
from tests.support.ranks import needs_gloo

pytestmark = [
    pytest.mark.skipif(find_spec("accelerate") is None, reason="accelerate is not installed"),
]

RUNS = {**ONE_PROCESS, **TWO_RANKS}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

ranks_only = [pytest.param(name, marks=needs_gloo) for name in TWO_RANKS]
every_run = pytest.mark.parametrize("name", [*ONE_PROCESS, *ranks_only])


def launch(command, folder, ranks):
    """One process, or one for each of several ranks."""
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": str(ranks)}
    processes = [
        start(
            "tests.integration.accelerate_worker",
            command,
            str(folder),
            env={**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {},
        )
        for rank in range(ranks)
    ]
    finish(processes)


class Results:
    """The records of the processes of one world, which start on first use."""

    def __init__(self, folder, ranks):
        self.folder, self.ranks, self.launched = folder, ranks, set()

    def of(self, name, command="start", rank=0):
        for needed in ("start", command):
            if needed not in self.launched:
                launch(needed, self.folder, self.ranks)
                self.launched.add(needed)
        return torch.load(self.folder / f"{name}-{command}-{rank}.pt")


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    one = Results(tmp_path_factory.mktemp("one"), ranks=1)
    two = Results(tmp_path_factory.mktemp("two"), ranks=2)
    return {**dict.fromkeys(ONE_PROCESS, one), **dict.fromkeys(TWO_RANKS, two)}


def reference(run: Run, ranks):
    model = make(dtype=run.dtype)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, foreach=False)
    seed = SEED_OF_RANK_ZERO if run.seed is None else run.seed
    return by_hand(
        model,
        optimizer,
        oracle_for(run.method, model, **{**SETTINGS, "seed": seed}),
        plan(
            STEPS,
            ranks=ranks,
            accumulate=run.accumulate,
            per_epoch=STEPS_PER_EPOCH * run.accumulate * ranks,
        ),
        max_norm=MAX_NORM,
        scheduler=torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=LR, total_steps=STEPS * ranks
        ),
        scheduler_steps=ranks,
        loss=loss_for(run),
        # Accelerate leaves schedulers alone after a skipped step.
        overflows=dict.fromkeys(run.overflows, 0),
    )


def loss_for(run):
    if run.precision in DTYPES:
        return autocast_to(DTYPES[run.precision])
    return double_loss if run.fsdp else loss_of


def double_loss(model, index):
    inputs, labels = batch(index, dtype=torch.float64)
    return F.cross_entropy(model(inputs), labels)


@every_run
def test_run_is_the_plain_loop_masked_by_hand(worlds, name):
    """Compared are update steps, schedulers, clipping, accumulation, mixed precision and ranks.

    Equal to the last bit. Under FSDP2 the clipped norm is a sum over ranks, so only nearly equal.
    """
    seen, run = worlds[name].of(name), RUNS[name]
    assert_same_run(seen, reference(run, worlds[name].ranks), exactly=not run.fsdp)
    updates = [record["step"] for record in seen["history"]]
    assert updates[-4:] == [5, 10, 15, 18] if run.method == "pruning" else [5, 10, 15]


@every_run
def test_layers_have_their_exact_counts_and_dropped_weights_are_zero_after_every_step(worlds, name):
    seen = worlds[name].of(name)
    assert_masks_hold(seen, live_counts(make()), pruned=RUNS[name].method == "pruning")


@every_run
def test_clip_grad_norm_clips_the_norm_of_live_gradients(worlds, name):
    """Where clipping binds, the gradients that the optimizer used have exactly this norm."""
    assert max(clipped_norms(worlds[name].of(name))) == pytest.approx(MAX_NORM, rel=1e-4)


@pytest.mark.parametrize("name", ranks_only)
def test_ranks_have_the_same_masks_weights_and_gradients_at_all_times(worlds, name):
    """Each rank has another seed and other data."""
    first, second = (worlds[name].of(name, rank=rank) for rank in range(2))
    assert_same_run(first, second)
    assert first["history"] == second["history"]
    for mine, theirs in zip(first["gradients"], second["gradients"], strict=True):
        for parameter, gradient in mine.items():
            assert torch.equal(gradient, theirs[parameter])


def test_accelerate_sees_which_steps_an_overflow_skipped_and_they_advance_nothing(worlds):
    """Of the 24 batches two overflow, on an ordinary step and on an update step."""
    seen = worlds["fp16"].of("fp16")
    overflows = RUNS["fp16"].overflows
    assert seen["skipped"] == [place in overflows for place in range(STEPS)]
    assert seen["outcome"]["steps"] == STEPS - len(overflows)
    assert [record["step"] for record in seen["history"]] == [5, 10, 15]
    assert not any(record["skipped"] for record in seen["history"])
    assert all(torch.isfinite(weight).all() for weight in seen["weights"][-1].values())


@every_run
def test_load_state_goes_on_in_fresh_processes_to_the_last_bit(worlds, name):
    """FSDP2 resumes from shards that both ranks saved."""
    uninterrupted, rest = worlds[name].of(name), worlds[name].of(name, "resume")
    assert 0 < len(rest["weights"]) == len(uninterrupted["weights"]) - SAVED_AT
    assert_same_run(rest, {key: uninterrupted[key][SAVED_AT:] for key in RECORDED})
    assert rest["history"] == uninterrupted["history"]
    assert rest["history"][-1]["step"] > SAVED_AT
    if not RUNS[name].fsdp:
        assert_same_outcome(rest["outcome"], uninterrupted["outcome"])


@pytest.mark.parametrize("name", ONE_PROCESS)
def test_flops_counts_the_prepared_model(worlds, name):
    seen = worlds[name].of(name)
    assert seen["inference_sparse"] == flops_by_hand(counts_of(seen["masks"][-1]))
