"""`capturable=True` on devices for which torch has it; an error elsewhere, as in torch."""

import re

import pytest
import torch

from sparseopt import SparseOptimizer
from tests.support.by_hand import HandMasked
from tests.support.catalogue import build, implementations, model_for, takes, torch_optimizers
from tests.support.looking import (
    assert_dropped_are_fresh,
    assert_same_weights,
    assert_unchanged,
    snapshot,
)
from tests.support.oracles import oracle_for
from tests.support.training import backward, train_step
from tests.support.wrapping import SETTINGS

STEPS = 12

CAPTURABLE = [
    pytest.param(name, {**implementation, "capturable": True}, id="-".join([name, *implementation]))
    for name in torch_optimizers()
    if takes(name, "capturable")
    for implementation in implementations(name)
]


def refusal(name, options, device):
    """torch's own error for these options on this device, or None."""
    model = model_for(name, device=device)
    try:
        optimizer = build(name, model.parameters(), **options)
        backward(model, 1)
        optimizer.step()
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "options"), CAPTURABLE)
def test_capturable_optimizer_goes_where_the_run_by_hand_goes(name, options, dtype, device):
    if (error := refusal(name, options, device)) is not None:
        pytest.skip(
            f"on {device} torch refuses it without a wrapper too: {str(error).partition(':')[0]}"
        )
    model, own_model = (model_for(name, dtype=dtype, device=device) for _ in range(2))
    oracle = oracle_for("rigl", own_model, **SETTINGS)
    by_hand = HandMasked(own_model, build(name, own_model.parameters(), **options), oracle)
    inner = build(name, model.parameters(), **options)
    optimizer = SparseOptimizer(inner, model, state="masked", **SETTINGS)
    for t in range(1, STEPS + 1):
        train_step(model, optimizer, t)
        by_hand.step()
        assert_dropped_are_fresh(optimizer)
    assert_same_weights(model, own_model)


@pytest.mark.parametrize(("name", "options"), CAPTURABLE)
def test_capture_that_torch_refuses_raises_torchs_error_and_changes_nothing(
    name, options, state, device
):
    error = refusal(name, options, device)
    if error is None:
        pytest.skip(f"torch takes it on {device}")
    model = model_for(name, device=device)
    optimizer = SparseOptimizer(
        build(name, model.parameters(), **options), model, state=state, **SETTINGS
    )
    backward(model, 1)
    before = snapshot(optimizer, model)
    with pytest.raises(type(error), match=re.escape(str(error))):
        optimizer.step()
    after = snapshot(optimizer, model)
    # torch may create state before it checks the device.
    after["state"] = before["state"]
    assert_unchanged(before, after)
    assert [p.shape for p in model.parameters()] == [p.shape for p in model_for(name).parameters()]
