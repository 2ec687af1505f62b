"""A gradient that is infinite on one rank only: all ranks skip the same update."""

import pytest
import torch

from tests.distributed.ddp_poison import LAYER, STEPS, UPDATES, Run, train
from tests.support.ranks import needs_gloo, two_ranks

pytestmark = needs_gloo


def seen_by_both(run):
    """The records of each rank, after a check that they are equal."""
    first, second = two_ranks().run(train, run)
    for what in ("masks", "weights"):
        for mine, theirs in zip(first[what], second[what], strict=True):
            for name, tensor in mine.items():
                assert torch.equal(tensor, theirs[name]), (what, name)
                assert tensor.isfinite().all()
    for what in ("history", "warnings", "steps"):
        assert first[what] == second[what]
    return first


def masks_moved(seen, t):
    return any(
        not torch.equal(mask, seen["masks"][t][name]) for name, mask in seen["masks"][t - 1].items()
    )


@pytest.mark.parametrize(
    ("method", "where"),
    [("rigl", "live"), ("rigl", "dropped"), ("set", "live"), ("pruning", "live")],
)
def test_all_ranks_skip_the_update_and_go_on(method, where):
    seen = seen_by_both(Run(method, steps=UPDATES[-1:], where=where))
    skipped = {record["step"]: record["skipped"] for record in seen["history"]}
    assert skipped.pop(UPDATES[-1])
    assert UPDATES[0] in skipped
    assert not any(skipped.values())
    assert masks_moved(seen, UPDATES[0])
    assert not masks_moved(seen, UPDATES[-1])
    (warning,) = seen["warnings"]
    assert f"not finite at step {UPDATES[-1]}" in warning
    assert seen["steps"] == STEPS


@pytest.mark.parametrize("method", ["rigl", "set", "pruning"])
def test_infinite_gradient_of_a_dropped_weight_stays_on_its_rank(method):
    """The gradient is masked before it is reduced, also on update steps that need no dense one."""
    steps = {t for t in range(1, STEPS + 1) if method != "rigl" or t not in UPDATES}
    poisoned = seen_by_both(Run(method, steps=tuple(steps), where="dropped"))
    assert sum(not masks[LAYER].all() for masks in poisoned["masks"][:-1]) > STEPS / 2
    clean = seen_by_both(Run(method))
    assert poisoned["warnings"] == clean["warnings"] == []
    assert poisoned["history"] == clean["history"]
    for mine, theirs in zip(poisoned["weights"], clean["weights"], strict=True):
        for name, weight in mine.items():
            assert torch.equal(weight, theirs[name]), name


@pytest.mark.parametrize("step", [5, UPDATES[-1]])
def test_grad_scaler_leaves_the_step_out_on_all_ranks(step):
    seen = seen_by_both(Run("rigl", steps=(step,), scaled=True))
    assert seen["steps"] == STEPS - 1
    assert seen["warnings"] == []
    assert not any(record["skipped"] for record in seen["history"])
    for name, weight in seen["weights"][step].items():
        assert torch.equal(weight, seen["weights"][step - 1][name])
    # The skipped step is not counted, so the update comes with the next step.
    assert [record["step"] for record in seen["history"]] == list(UPDATES)
    assert masks_moved(seen, UPDATES[-1] + 1)
