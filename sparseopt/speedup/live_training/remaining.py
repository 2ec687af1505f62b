"""Finds what takes the time of a pass once its products are fast: operations, and slow calls.

Between modules, a user's own code may call functions on maps in the kernels' layout. Most functions
are as fast on this layout as on others. Slow ones are found by timing each call again, on copies of
its maps in both layouts: the call in the pass itself may be slow for another reason, such as memory
that is new.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves, tree_map

from sparseopt.speedup.live_training.layout import in_kernel_layout
from sparseopt.speedup.timing import clock_of, seconds, time_in_turn

__all__ = ["SlowCall", "seconds_by_operation", "slow_calls"]

#: Shorter calls are not named.
_WORTH_NAMING: Final = 1e-3
#: A call is slow if it takes more than this many times as long as on channels-last maps.
_SLOW: Final = 2.0
_ROUNDS: Final = 3
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
        copies: tuple[Any, Any] = tree_map(_copied, (args, kwargs))
        result = None

        def call() -> None:
            nonlocal result
            result = func(*args, **kwargs)

        if seconds(call, device="cpu", clock=clock_of("cpu")) >= _WORTH_NAMING:
            name = resolve_name(func) or getattr(func, "__name__", repr(func))
            found = _timed(name, func, copies, _leaves_layout(maps, result))
            if found.seconds >= _WORTH_NAMING:
                self.calls.setdefault(name, []).append(found)
        return result


def _timed(
    name: str,
    func: Callable[..., Any],
    arguments: tuple[tuple[Any, ...], Mapping[str, Any]],
    leaves_layout: bool,
) -> SlowCall:
    """Time a call on maps in the kernels' layout and in channels-last format, in turn."""
    args, kwargs = arguments
    other_args, other_kwargs = tree_map(_channels_last, arguments)
    with torch.no_grad():
        times = time_in_turn(
            {
                "here": lambda: func(*args, **kwargs),
                "elsewhere": lambda: func(*other_args, **other_kwargs),
            },
            rounds=_ROUNDS,
            device="cpu",
            clock=clock_of("cpu"),
        )
    return SlowCall(name, 1, times["here"].median, times["elsewhere"].median, leaves_layout)


def _is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and in_kernel_layout(value)


def _copied(value: Any) -> Any:
    return value.detach().clone() if _is_map(value) else value


def _channels_last(value: Any) -> Any:
    return value.contiguous(memory_format=torch.channels_last) if _is_map(value) else value


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
