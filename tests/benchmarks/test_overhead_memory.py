"""What is counted as memory: whatever is held, once, and however it is held."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.overhead.building import Case
from benchmarks.overhead.contenders import Contender, Sparsity
from benchmarks.overhead.memory import checkpoint_bytes, resident_bytes
from benchmarks.overhead.peak import can_measure, peak_of_steps

ROOT = Path(__file__).parents[2]
MEGA = 1 << 20
HAS_HIGH_WATER_MARK = pytest.mark.skipif(
    not can_measure("cpu"), reason="this system has no high-water mark of memory to read"
)


@pytest.fixture
def contender() -> Contender:
    """A plain SGD with momentum after its first step, on 300 weights in 3 rows."""
    model = nn.Linear(100, 3, bias=False)
    contender = Contender(model, "sgd-for-loop", Sparsity(density=0.1, update_every=2))
    model(torch.ones(1, 100)).sum().backward()
    contender.step()
    return contender


def test_a_plain_optimizer_holds_its_state_and_no_more(contender: Contender) -> None:
    assert resident_bytes(contender) == {
        "weights": 1200,
        "gradients": 1200,
        "state": 1200,
        "masks": 0,
        "index": 0,
        "other": 0,
        "held": {},
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
    assert sum(held["held"].values()) == 300 + 40 + 120 + 2400
    assert held["held"]["Linear.positions"] == 120
    assert held["held"]["SGD.kept"] == 40


def test_memory_that_is_shared_counts_once_and_a_view_counts_as_its_whole(
    contender: Contender,
) -> None:
    whole = torch.zeros(1000, dtype=torch.uint8)
    contender.optimizer.views = [whole[:10], whole[10:20], contender.model.weight.detach()]
    assert resident_bytes(contender)["masks"] == 1000
    assert resident_bytes(contender)["other"] == 0


def test_a_checkpoint_is_as_long_as_its_file(contender: Contender, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save(contender.checkpoint(), path)
    # Inside, a file has its own name.
    assert checkpoint_bytes(contender) == pytest.approx(path.stat().st_size, abs=500)


@HAS_HIGH_WATER_MARK
@pytest.mark.parametrize("allocated", ["np.ones(64 << 20, dtype=np.int8)", "torch.ones(16 << 20)"])
def test_the_rise_is_what_was_allocated_even_if_it_is_free_again(allocated: str) -> None:
    """In a process of its own, as it is measured: a large one gives other memory back meanwhile."""
    program = f"""
import numpy as np, statistics, torch
from benchmarks.overhead.peak import rise
def median_rise(call):
    return statistics.median(rise(call, torch.device("cpu")) for _ in range(5))
print(median_rise(lambda: {allocated}.sum()), median_rise(lambda: None))
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    allocating, idle = (float(number) for number in finished.stdout.split())
    assert allocating == pytest.approx(64 * MEGA, abs=4 * MEGA)
    assert idle < 4 * MEGA


@pytest.mark.slow
@HAS_HIGH_WATER_MARK
def test_adamw_foreach_needs_another_copy_of_the_weights_for_a_moment() -> None:
    case = Case("resnet-50", 0.1, "adamw-foreach")
    peaks = peak_of_steps(case, "plain", quick=True, device="cpu")
    assert peaks is not None
    assert set(peaks) == {"step"}
    # The tiny model has 13 MiB of weights, a tenth of them in tensors too small for pages of
    # their own.
    assert 10 * MEGA < peaks["step"] < 20 * MEGA
