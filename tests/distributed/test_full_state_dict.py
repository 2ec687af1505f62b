"""A full optimizer state dict loads on two ranks by torch's own functions, as a plain one does."""

import pytest
import torch

from tests.distributed.full_state_dict import STEPS, resume
from tests.support.ranks import needs_gloo, two_ranks

pytestmark = [needs_gloo]


@pytest.mark.parametrize("broadcast", [False, True])
@pytest.mark.parametrize(("stop", "updates"), [(2, 0), (6, 1)])
@pytest.mark.parametrize(
    ("wrapper", "method"), [("fsdp", "rigl"), ("fsdp", "snfs"), ("ddp", "set")]
)
def test_run_that_loads_a_full_state_dict_is_the_uninterrupted_run(
    wrapper, method, stop, updates, broadcast
):
    for seen in two_ranks().run(resume, wrapper, method, stop, broadcast=broadcast):
        uninterrupted, resumed = seen["uninterrupted"], seen["resumed"]
        assert seen["loaded"] == (stop, updates)
        for part in ("weights", "masks"):
            assert uninterrupted[part].keys() == resumed[part].keys()
            for name, tensor in uninterrupted[part].items():
                assert torch.equal(tensor, resumed[part][name]), (part, name)
        assert uninterrupted["history"] == resumed["history"]
        assert len(resumed["history"]) == 2
        assert resumed["steps"] == STEPS
