"""Hugging Face's Trainer: real runs in processes of their own, against a loop without it."""

from importlib.util import find_spec

import pytest
import torch

from tests.integration.frameworks import (
    MAX_NORM,
    RECORDED,
    STEPS,
    assert_same_outcome,
    assert_same_run,
    clipped_norms,
)
from tests.integration.huggingface_runs import HIDDEN, LENGTH, RUNS, SAVED_AT, VOCABULARY
from tests.support.processes import finish, start

pytestmark = [
    pytest.mark.skipif(
        find_spec("transformers") is None or find_spec("accelerate") is None,
        reason="transformers and accelerate are not both installed",
    ),
]

every_run = pytest.mark.parametrize("name", RUNS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What one process trained from beginning to end, with a checkpoint on the way."""
    folder = tmp_path_factory.mktemp("huggingface")
    finish([start("tests.integration.huggingface_worker", "start", str(folder))])
    return folder


@pytest.fixture(scope="module")
def resumed(folder):
    """The same folder, after a second process resumed every run's checkpoint."""
    finish([start("tests.integration.huggingface_worker", "resume", str(folder))])
    return folder


@every_run
def test_run_is_the_plain_loop_masked_by_hand_to_the_last_bit(folder, name):
    """Compared are update steps, schedulers, clipping, accumulation and bf16."""
    seen = torch.load(folder / f"{name}-start.pt")
    assert_same_run(seen, seen["reference"])
    assert [record["step"] for record in seen["outcome"]["history"]] == [5, 10, 15]


@every_run
def test_everything_linear_is_sparse_and_embeddings_and_what_is_tied_to_them_are_dense(
    folder, name
):
    seen = torch.load(folder / f"{name}-start.pt")
    assert tuple(seen["masks"][0]) == RUNS[name].names
    for weights, masks in zip(seen["weights"], seen["masks"], strict=True):
        for layer, weight in weights.items():
            if layer in masks:
                assert not weight[~masks[layer]].any(), layer
            elif "embed" in layer or layer.endswith(("wte.weight", "wpe.weight")):
                assert weight.count_nonzero() > 0.9 * weight.numel(), layer
    live = sum(int(mask.sum()) for mask in seen["masks"][-1].values())
    numel = sum(mask.numel() for mask in seen["masks"][-1].values())
    assert live / numel == pytest.approx(0.2, abs=0.001)


@every_run
def test_trainer_clips_and_logs_the_norm_of_live_gradients_and_the_learning_rate(folder, name):
    seen = torch.load(folder / f"{name}-start.pt")
    log, reference = seen["log"], seen["reference"]
    assert [entry["step"] for entry in log] == list(range(1, STEPS + 1))
    for entry, norm, updating in zip(log, reference["norm"], reference["updating"], strict=True):
        assert updating or entry["grad_norm"] == float(norm)
    # Logged after the step, and before the scheduler's.
    assert [entry["learning_rate"] for entry in log] == [rates[0] for rates in reference["lr"]]
    assert max(clipped_norms(seen)) == pytest.approx(MAX_NORM, rel=1e-4)


@every_run
def test_resume_from_checkpoint_goes_on_in_a_fresh_process_to_the_last_bit(resumed, name):
    """The optimizer is made before the model is loaded if it is passed, and after it otherwise."""
    uninterrupted = torch.load(resumed / f"{name}-start.pt")
    rest = torch.load(resumed / f"{name}-resume.pt")
    assert len(rest["weights"]) == STEPS - SAVED_AT
    assert_same_run(rest, {key: uninterrupted[key][SAVED_AT:] for key in RECORDED})
    assert_same_outcome(rest["outcome"], uninterrupted["outcome"])
    assert rest["outcome"]["history"][-1]["step"] > SAVED_AT


@pytest.mark.parametrize("name", [name for name in RUNS if RUNS[name].model != "BERT"])
def test_flops_counts_a_language_model_that_is_called_by_keyword(folder, name):
    """FLOPs of a text: two a token and weight (live, or of the tied head), one a token and bias."""
    seen = torch.load(folder / f"{name}-start.pt")
    live = sum(int(mask.sum()) for mask in seen["masks"][-1].values())
    biases = 0
    if RUNS[name].model == "GPT-2":
        biases = sum(mask.shape[1] for mask in seen["masks"][-1].values())
    per_token = 2 * (live + VOCABULARY * HIDDEN) + biases
    assert seen["inference_sparse"] == LENGTH * per_token
