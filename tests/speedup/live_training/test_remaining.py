"""Where the time of a pass goes: by operation, and which calls the kernels' layout slows down."""

import torch
import torch.nn.functional as F

from sparseopt.speedup.live_training.layout import to_kernel_layout
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


def test_functions_that_leave_the_layout_or_are_slow_in_it_are_named():
    x = to_kernel_layout(torch.randn(32, 32, 32, 32))

    def forward():
        y = torch.cat([x.relu(), x], 1)
        assert y.is_contiguous()
        F.dropout(x, 0.5)
        F.batch_norm(x, None, None, training=True)
        return y

    found = {call.name: call for call in slow_calls(forward)}
    assert found["torch.cat"].leaves_layout
    assert "torch.nn.functional.dropout" in found
    assert "torch.Tensor.relu" not in found
    assert all(call.calls == 1 for call in found.values())


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
