"""Lightning Fabric: a run that is saved and resumed half-way, against a loop without it."""

import pytest
import torch

from tests.integration.frameworks import (
    LR,
    MAX_NORM,
    SETTINGS,
    STEPS,
    STEPS_PER_EPOCH,
    assert_same_run,
    by_hand,
    clipped_norms,
    plan,
)
from tests.support.nets import make
from tests.support.oracles import oracle_for
from tests.support.processes import finish, start

pytest.importorskip("lightning")


def test_fabric_is_the_plain_loop_masked_by_hand_also_after_save_and_load(tmp_path):
    """Compared are update steps, clipping and a checkpoint, to the last bit."""
    finish([start("tests.integration.fabric_worker", str(tmp_path))])
    seen = torch.load(tmp_path / "fabric.pt")
    model = make()
    reference = by_hand(
        model,
        torch.optim.AdamW(model.parameters(), lr=LR),
        oracle_for("rigl", model, **SETTINGS),
        plan(STEPS, per_epoch=STEPS_PER_EPOCH),
        max_norm=MAX_NORM,
    )
    assert_same_run(seen, reference)
    assert sum(seen["updating"]) == 3
    assert max(clipped_norms(seen)) == pytest.approx(MAX_NORM, rel=1e-4)
