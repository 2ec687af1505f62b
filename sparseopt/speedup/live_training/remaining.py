"""Finds what takes the time of a pass once its products are fast: operations, and slow calls.

Between modules, a user's own code may call functions on maps in the kernels' layout. Most functions
are as fast on this layout as on others. Slow ones are found by timing each call again on copies of
its maps in channels-last format.
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
#: A call is slow if it takes more than this many times as long as on channels-last maps.
_SLOW: Final = 2.0
_EVALUATES: Final = "autograd::engine::evaluate_function: "


@dataclass(frozen=True)
class SlowCall:
    """A function that user code calls on maps in the kernels' layout, with the time of its calls.

    Attributes:
        name: the function's name.
        calls: the number of calls in a forward pass.
        seconds: the time of all these calls.
        elsewhere: their time on maps in channels-last format.
        leaves_layout: whether the function returns maps in another layout.
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
                "the next convolution converts its input back"
            )
        if self.name.endswith(".dropout"):
            return (
                f"{self.name} draws torch's random numbers ({calls}, {1e3 * self.seconds:.3g} ms): "
                "with a torch.nn.Dropout module they would be cheaper"
            )
        return (
            f"{self.name} takes {1e3 * self.seconds:.3g} ms ({calls}) in the kernels' layout and "
            f"{1e3 * self.elsewhere:.3g} ms in channels-last: a torch.nn module may be fast in both"
        )


def seconds_by_operation(call: Callable[[], Any]) -> dict[str, float]:
    """Return the seconds of each torch operation in ``call``, without operations that it calls.

    The result is empty if a profiler is running already, because torch allows only one.
    """
    if torch.autograd.profiler._is_profiler_enabled:
        return {}
    # The newer profiler writes to the standard error stream.
    from torch.autograd.profiler_legacy import profile

    with profile() as profiled:  # type: ignore[no-untyped-call]
        call()
    found: dict[str, float] = {}
    for event in profiled.key_averages():
        name = event.key.removeprefix(_EVALUATES)
        found[name] = found.get(name, 0.0) + 1e-6 * event.self_cpu_time_total
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def slow_calls(forward: Callable[[], Any]) -> list[SlowCall]:
    """Return the functions called by ``forward`` that are slow on maps in the kernels' layout."""
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
    """Times calls of functions on maps in the kernels' layout."""

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
        # Copied before the call, which may change its arguments in place.
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
    # The CPU time of one thread is not affected by other processes.
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
