"""All tensors that a contender holds count as memory, once each, however it holds them."""

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.overhead.contenders import Contender, Sparsity
from benchmarks.overhead.memory import resident_bytes


@pytest.fixture
def contender() -> Contender:
    """A plain SGD with momentum after its first step, on 300 weights in 3 rows."""
    model = nn.Linear(100, 3, bias=False)
    contender = Contender(model, "sgd-for-loop", Sparsity(density=0.1, update_every=2))
    model(torch.ones(1, 100)).sum().backward()
    contender.step()
    return contender


def test_plain_optimizer_holds_only_its_state(contender: Contender) -> None:
    assert resident_bytes(contender) == {
        "weights": 1200,
        "gradients": 1200,
        "state": 1200,
        "masks": 0,
        "index": 0,
        "other": 0,
    }


def test_tensors_are_found_in_hooks_closures_lists_and_attributes(contender: Contender) -> None:
    live = torch.ones(300, dtype=torch.bool)
    packed = np.zeros(40, dtype=np.uint8)
    positions = torch.zeros(30, dtype=torch.int32)
    remembered = torch.zeros(300, dtype=torch.float64)

    contender.model.weight.register_hook(lambda gradient: gradient * live.view(3, 100))
    contender.optimizer.kept = {"packed": [packed]}
    contender.model.register_buffer("positions", positions)
    contender.optimizer.register_step_post_hook(lambda *_: remembered)

    held = resident_bytes(contender)
    assert held["masks"] == 300 + 40
    assert held["index"] == 4 * 30
    assert held["other"] == 8 * 300


def test_memory_that_is_shared_counts_once_and_a_view_counts_as_its_whole(
    contender: Contender,
) -> None:
    whole = torch.zeros(1000, dtype=torch.uint8)
    contender.optimizer.views = [whole[:10], whole[10:20], contender.model.weight.detach()]
    assert resident_bytes(contender)["masks"] == 1000
    assert resident_bytes(contender)["other"] == 0
