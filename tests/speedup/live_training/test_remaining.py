"""Where the time of a pass goes: by operation, and which calls the kernels' layout slows down."""

from collections import deque

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from sparseopt.speedup.live_training.layout import in_kernel_layout, to_kernel_layout
from sparseopt.speedup.live_training.remaining import (
    SlowCall,
    seconds_by_operation,
    slow_calls,
)


def test_seconds_are_by_operation_and_the_largest_come_first():
    x = torch.randn(200, 200, requires_grad=True)
    found = seconds_by_operation(lambda: (x @ x).relu().sum().backward())
    assert {"aten::mm", "aten::threshold_backward"} <= found.keys()
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert found["aten::mm"] > 0


def test_profiler_that_is_running_already_is_left_alone():
    with torch.autograd.profiler.profile(use_cpu=True, use_kineto=False) as outer:
        assert seconds_by_operation(lambda: torch.ones(3) + 1) == {}
        torch.ones(3).exp()
    assert "aten::exp" in {event.key for event in outer.key_averages()}


class Durations(TorchFunctionMode):
    """A clock that only calls of functions move, by seconds from a table.

    The table has the seconds in the kernels' layout and in another layout, by function. The last
    number of a list stands for all calls that follow.
    """

    def __init__(self, table):
        super().__init__()
        self.now = 0.0
        self.table = {f: tuple(map(deque, both)) for f, both in table.items()}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.table:
            first = args[0][0] if isinstance(args[0], list) else args[0]
            here, elsewhere = self.table[func]
            left = here if in_kernel_layout(first) else elsewhere
            self.now += left.popleft() if len(left) > 1 else left[0]
        return func(*args, **(kwargs or {}))


@pytest.fixture
def durations(monkeypatch):
    def install(table):
        made = Durations(table)
        monkeypatch.setattr("time.thread_time", lambda: made.now)
        monkeypatch.setattr("time.perf_counter", lambda: made.now)
        return made

    return install


def test_functions_that_leave_the_layout_or_are_slow_in_it_are_named(durations):
    x = to_kernel_layout(torch.randn(4, 4, 3, 3))
    table = {
        torch.cat: ([0.002], [0.002]),
        F.dropout: ([0.002], [0.002]),
        F.max_pool2d: ([0.005], [0.002]),
        F.avg_pool2d: ([0.003], [0.002]),
        F.pad: ([0.0005], [0.0001]),
    }

    def forward():
        y = torch.cat([x, x], 1)
        assert y.is_contiguous()
        F.dropout(x, 0.5)
        F.max_pool2d(x, 2)
        F.avg_pool2d(x, 2)
        F.pad(x, (1, 1))

    with durations(table):
        found = {call.name: call for call in slow_calls(forward)}
    assert found.keys() == {
        "torch.cat",
        "torch.nn.functional.dropout",
        "torch.nn.functional.max_pool2d",
    }
    assert found["torch.cat"].leaves_layout
    slow = found["torch.nn.functional.max_pool2d"]
    assert (slow.calls, slow.seconds, slow.elsewhere) == pytest.approx((1, 0.005, 0.002))


def test_function_that_is_slow_only_once_is_not_named(durations):
    """The first call on new memory takes several times as long as later ones."""
    x = to_kernel_layout(torch.randn(4, 4, 3, 3))
    table = {
        torch.Tensor.relu: ([0.0075, 0.0075, 0.003], [0.0032, 0.003]),
        torch.Tensor.exp: ([0.0075, 0.0005], [0.0001]),
    }
    with durations(table):
        assert slow_calls(lambda: x.relu().exp()) == []


def test_timing_calls_again_changes_nothing():
    x = to_kernel_layout(torch.ones(64, 64, 32, 32))
    expected = x + 1
    calls = slow_calls(lambda: x.add_(1))
    assert torch.equal(x, expected)
    assert all(call.calls == 1 for call in calls)


def test_calls_of_one_function_are_added_up():
    text = str(SlowCall("f", 3, 0.0123, 0.004, leaves_layout=False))
    took = "f takes 12.3 ms (3 calls) in the kernels' layout and 4 ms in channels-last"
    assert text.startswith(took)
