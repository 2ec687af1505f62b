"""Two ranks save, one process loads without DistributedDataParallel, and the reverse."""

import pytest
import torch
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from tests.distributed.ddp_restore import (
    NAMED_BY,
    RUNS,
    STEPS,
    STOP,
    load_on_ranks,
    outcome,
    save_on_ranks,
    train_joined,
    wrap,
)
from tests.support.nets import make
from tests.support.ranks import needs_gloo, two_ranks

pytestmark = [
    needs_gloo,
    pytest.mark.parametrize("named_by", NAMED_BY),
    pytest.mark.parametrize(("method", "name"), RUNS),
]


def assert_same(left, right):
    """Equal to the last bit."""
    for part in ("weights", "masks", "state"):
        assert {key.removeprefix("module.") for key in left[part]} == right[part].keys()
        for key, tensor in left[part].items():
            assert torch.equal(tensor, right[part][key]), (part, key)
    assert left["history"] == right["history"]
    assert left["steps"] == right["steps"]


def assert_close(left, right):
    """Equal up to the rounding of sums in another order; the masks are equal."""
    for name, mask in left["masks"].items():
        assert torch.equal(mask, right["masks"][name]), name
    for part in ("weights", "state"):
        for key, tensor in left[part].items():
            torch.testing.assert_close(tensor, right[part][key], rtol=1e-3, atol=1e-5)
    assert [record["step"] for record in left["history"]][-1] > STOP
    assert len(left["history"]) == len(right["history"])
    assert left["steps"] == right["steps"] == STEPS


def test_process_resumes_the_checkpoint_of_two_ranks(method, name, named_by, tmp_path):
    path = tmp_path / "checkpoint.pt"
    seen = two_ranks().run(save_on_ranks, method, name, named_by, str(path))
    saved = torch.load(path)
    assert all(key.startswith("module.") for key in saved["model"])
    consume_prefix_in_state_dict_if_present(saved["model"], "module.")

    model = make(seed=5)
    optimizer = wrap(model, method, name, named_by)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    for rank in seen:
        assert_same(outcome(model, optimizer), rank["midway"])
    train_joined(model, optimizer, STOP, STEPS)
    assert_close(outcome(model, optimizer), seen[0]["end"])


def test_ranks_resume_the_checkpoint_of_one_process(method, name, named_by, tmp_path):
    path = tmp_path / "checkpoint.pt"
    model = make(seed=5)
    optimizer = wrap(model, method, name, named_by)
    train_joined(model, optimizer, 0, STOP)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)

    seen = two_ranks().run(load_on_ranks, method, name, named_by, str(path))
    for rank in seen:
        assert_same(outcome(model, optimizer), rank["midway"])
    train_joined(model, optimizer, STOP, STEPS)
    assert_same(seen[0]["end"], seen[1]["end"])
    assert_close(outcome(model, optimizer), seen[0]["end"])
