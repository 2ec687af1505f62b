"""Lightning: real runs in processes of their own, against a loop without it."""

from importlib.util import find_spec

import pytest
import torch

from sparseopt import SparseOptimizer
from tests.integration.frameworks import (
    LR,
    MAX_NORM,
    RECORDED,
    SETTINGS,
    STEPS,
    STEPS_PER_EPOCH,
    Recorder,
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
from tests.integration.lightning_runs import AUTOMATIC, Run
from tests.support.catalogue import build
from tests.support.nets import loss_of, make
from tests.support.oracles import oracle_for
from tests.support.processes import finish, start

pytestmark = [
    pytest.mark.skipif(find_spec("lightning") is None, reason="lightning is not installed"),
]

RUNS = [*AUTOMATIC, "pair", "closures"]
DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What one process trained from beginning to end, with a checkpoint after every epoch."""
    folder = tmp_path_factory.mktemp("lightning")
    finish([start("tests.integration.lightning_worker", "start", str(folder))])
    return folder


@pytest.fixture(scope="module")
def resumed(folder):
    """The same folder, after a second process resumed every run's first checkpoint."""
    finish([start("tests.integration.lightning_worker", "resume", str(folder))])
    return folder


def reference(run: Run, *, seed: int = 0):
    model = make(seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=run.fused)
    return by_hand(
        model,
        optimizer,
        oracle_for(run.method, model, **SETTINGS),
        plan(STEPS, accumulate=run.accumulate, per_epoch=STEPS_PER_EPOCH * run.accumulate),
        max_norm=run.max_norm,
        scheduler=torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LR, total_steps=STEPS),
        loss=autocast_to(DTYPES[run.precision]) if run.precision in DTYPES else loss_of,
        # Lightning steps schedulers after a skipped step, too.
        overflows=dict.fromkeys(run.overflows, 1),
    )


@pytest.mark.parametrize("name", AUTOMATIC)
def test_automatic_optimization_is_the_plain_loop_masked_by_hand_to_the_last_bit(folder, name):
    """Compared are update steps, schedulers, clipping, accumulation and mixed precision."""
    (seen,) = torch.load(folder / f"{name}-start.pt")
    assert_same_run(seen, reference(AUTOMATIC[name]))


def test_manual_optimization_with_two_optimizers_is_two_plain_loops(folder):
    """With `toggle_model()`, `manual_backward()`, `clip_gradients()` and two schedulers."""
    first, second = torch.load(folder / "pair-start.pt")
    assert_same_run(first, reference(Run(), seed=0))
    assert_same_run(second, reference(Run(), seed=1))


def test_optimizer_that_evaluates_the_closure_many_times_trains_as_without_lightning(folder):
    """L-BFGS cannot be masked by hand, so it is compared with the wrapper in a plain loop."""
    (seen,) = torch.load(folder / "closures-start.pt")
    model = make()
    optimizer = SparseOptimizer(build("LBFGS", model.parameters()), model, **SETTINGS)
    recorder = Recorder(model, optimizer)
    for t in range(STEPS):

        def closure(t=t):
            optimizer.zero_grad()
            loss = loss_of(model, t % STEPS_PER_EPOCH)
            loss.backward()
            return loss

        optimizer.step(closure)
    assert_same_run(seen, recorder.seen)


@pytest.mark.parametrize("name", RUNS)
def test_layers_have_their_exact_counts_and_dropped_weights_are_zero_after_every_step(folder, name):
    for seen in torch.load(folder / f"{name}-start.pt"):
        assert_masks_hold(seen, live_counts(make()), pruned=name == "pruning")


@pytest.mark.parametrize("name", [name for name, run in AUTOMATIC.items() if run.max_norm])
def test_gradient_clip_val_clips_the_norm_of_live_gradients(folder, name):
    """Where clipping binds, the gradients that the optimizer used have exactly this norm."""
    (seen,) = torch.load(folder / f"{name}-start.pt")
    assert max(clipped_norms(seen)) == pytest.approx(MAX_NORM, rel=1e-4)


def test_overflow_under_fp16_advances_nothing(folder):
    """Of the 24 batches two overflow, on an ordinary step and on an update step."""
    (seen,) = torch.load(folder / "fp16, fused-start.pt")
    assert seen["outcome"]["steps"] == STEPS - 2
    assert [record["step"] for record in seen["outcome"]["history"]] == [5, 10, 15]
    assert not any(record["skipped"] for record in seen["outcome"]["history"])
    assert all(torch.isfinite(weight).all() for weight in seen["weights"][-1].values())


@pytest.mark.parametrize("name", RUNS)
def test_checkpoint_of_lightning_goes_on_in_a_fresh_process_to_the_last_bit(resumed, name):
    """Lightning loads the model, makes the optimizer, and only then loads its state."""
    uninterrupted = torch.load(resumed / f"{name}-start.pt")
    for full, rest in zip(uninterrupted, torch.load(resumed / f"{name}-resume.pt"), strict=True):
        steps = len(rest["weights"])
        assert 0 < steps < len(full["weights"])
        assert_same_run(rest, {key: full[key][-steps:] for key in rest if key in RECORDED})
        assert_same_outcome(rest["outcome"], full["outcome"])
        assert rest["outcome"]["history"][-1]["step"] > full["outcome"]["steps"] - steps


@pytest.mark.parametrize("name", RUNS)
def test_self_optimizers_shows_masks_and_figures_through_lightnings_wrapper(folder, name):
    for seen in torch.load(folder / f"{name}-start.pt"):
        masks, through = seen["masks"][-1], seen["through Lightning"]
        counts = counts_of(masks)
        assert through["is sparse"]
        assert through["live"] == counts
        assert through["density"] == sum(counts.values()) / sum(m.numel() for m in masks.values())
        assert through["steps"] == seen["outcome"]["steps"]
        assert through["inference_sparse"] == flops_by_hand(counts)
