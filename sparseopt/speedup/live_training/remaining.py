"""Where the time of a pass goes once its products are fast: by operation, and by slow calls.

Between modules a user's own code may call functions on maps in the kernels' layout. Most run as
fast on them as on others. Those that do not are found by timing each call again on copies of its
maps in channels-last format.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves, tree_map

from sparseopt.speedup.live_training.layout import in_kernel_layout

__all__ = ["SlowCall", "seconds_by_operation", "slow_calls"]

#: Shorter calls are not timed again.
_WORTH_NAMING: Final = 1e-3
#: A call that takes so many times as long as on other maps is slow.
_SLOW: Final = 2.0
_EVALUATES: Final = "autograd::engine::evaluate_function: "


@dataclass(frozen=True)
class SlowCall:
    """A function that user code calls on maps in the kernels' layout, and what that costs.

    Attributes:
        name: the function.
        calls: how many of them there are in a forward pass.
        seconds: what they take together.
        elsewhere: what they take on maps in channels-last format.
        leaves_layout: whether they return maps in another layout.
    """

    name: str
    calls: int
    seconds: float
    elsewhere: float
    leaves_layout: bool

    def __str__(self) -> str:
        calls = f"{self.calls} call{'s' * (self.calls > 1)}"
        if self.leaves_layout:
            return (
                f"{self.name} leaves the kernels' layout ({calls}, {1e3 * self.seconds:.3g} ms): "
                "the next convolution converts"
            )
        if self.name.endswith(".dropout"):
            return (
                f"{self.name} draws as torch does ({calls}, {1e3 * self.seconds:.3g} ms): "
                "torch.nn.Dropout would draw more cheaply"
            )
        return (
            f"{self.name} takes {1e3 * self.seconds:.3g} ms ({calls}) in the kernels' layout, "
            f"{1e3 * self.elsewhere:.3g} ms channels-last: a module may be fast in both"
        )


def seconds_by_operation(call: Callable[[], Any]) -> dict[str, float]:
    """Return the seconds of each operation of torch in ``call``, without those that it calls.

    Nothing is returned where a profiler is running already: there can be one only.
    """
    if torch.autograd.profiler._is_profiler_enabled:
        return {}
    # The newer implementation writes lines of its own to the standard error stream.
    from torch.autograd.profiler_legacy import profile

    with profile() as profiled:  # type: ignore[no-untyped-call]
        call()
    found: dict[str, float] = {}
    for event in profiled.key_averages():
        name = event.key.removeprefix(_EVALUATES)
        found[name] = found.get(name, 0.0) + 1e-6 * event.self_cpu_time_total
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def slow_calls(forward: Callable[[], Any]) -> list[SlowCall]:
    """Return which functions that ``forward`` calls are slow on maps in the kernels' layout."""
    watch = _Watch()
    with watch:
        forward()
    return [
        call
        for call in map(_joined, watch.calls.values())
        if call.leaves_layout
        or call.seconds > _SLOW * call.elsewhere
        or call.name.endswith(".dropout")
    ]


class _Watch(TorchFunctionMode):
    """Times calls of functions that are given maps in the kernels' layout."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, list[SlowCall]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        maps = [leaf for leaf in tree_leaves((args, kwargs)) if _is_map(leaf)]
        if not maps:
            return func(*args, **kwargs)
        # What it does to its arguments in place must not be there when it is timed again.
        copied = tree_map(_channels_last, (args, kwargs))
        seconds, result = _timed(func, args, kwargs)
        if seconds >= _WORTH_NAMING:
            with torch.no_grad():
                elsewhere, _ = _timed(func, *copied)
            name = resolve_name(func) or getattr(func, "__name__", repr(func))
            call = SlowCall(name, 1, seconds, elsewhere, _leaves_layout(maps, result))
            self.calls.setdefault(name, []).append(call)
        return result


def _timed(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[float, Any]:
    # What other processes take from the core is none of the call's.
    now = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = now()
    result = func(*args, **kwargs)
    return now() - start, result


def _is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and in_kernel_layout(value)


def _channels_last(value: Any) -> Any:
    if not _is_map(value):
        return value
    return value.detach().contiguous(memory_format=torch.channels_last)


def _leaves_layout(maps: Sequence[Tensor], result: Any) -> bool:
    return (
        isinstance(result, Tensor)
        and result.dim() == 4
        and result.shape[0] == maps[0].shape[0]
        and result.shape[-1] > 1
        and not in_kernel_layout(result)
    )


def _joined(calls: Sequence[SlowCall]) -> SlowCall:
    return SlowCall(
        calls[0].name,
        len(calls),
        sum(call.seconds for call in calls),
        sum(call.elsewhere for call in calls),
        any(call.leaves_layout for call in calls),
    )
