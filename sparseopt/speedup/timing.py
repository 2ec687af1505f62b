"""Times several calls side by side: each once a round, in a new random order every round.

The speed of a machine changes: other jobs come and go, clocks rise and fall. So two calls that are
timed one after the other are timed at different speeds. Here all calls share every round, so that
whatever slows one round slows all of them, and two calls can be compared round by round. The order
within a round is random, because each call leaves the caches in its own state, and in a fixed order
every call would always follow the same other call.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar, get_args

import numpy as np
import torch

__all__ = ["Clock", "Timing", "clock_of", "in_turn", "seconds", "time_briefly", "time_in_turn"]

#: ``"wall"`` is elapsed time; ``"thread"`` is the CPU time of the calling thread alone.
Clock = Literal["wall", "thread"]
Result = TypeVar("Result")

_CLOCKS: Final = get_args(Clock)
#: The shortest time, in seconds, that is used to compute the number of repetitions.
_RESOLUTION: Final = 1e-9
#: A call of at least this many seconds can be hopeless; shorter ones cost little, and vary more.
_LONG: Final = 0.25
_FEW_ROUNDS: Final = 5
_LONG_ENOUGH: Final = 1e-3


@dataclass(frozen=True)
class Timing:
    """The time of one call in every round, or its ratio to another call's.

    Attributes:
        values: One number for each round, in the order of the rounds: seconds, or ratios.

    Example:
        >>> timing = Timing((4.0, 1.0, 2.0, 3.0, 5.0))
        >>> timing.median, timing.q1, timing.q3
        (3.0, 2.0, 4.0)
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("values=() has no round to summarise; give one number a round")

    @property
    def median(self) -> float:
        """The median over the rounds."""
        return self._quantile(0.5)

    @property
    def q1(self) -> float:
        """The lower quartile: a quarter of the rounds took less."""
        return self._quantile(0.25)

    @property
    def q3(self) -> float:
        """The upper quartile: a quarter of the rounds took more."""
        return self._quantile(0.75)

    def over(self, other: Timing) -> Timing:
        """Return the ratios to another call's times in the same rounds.

        Args:
            other: The timing of a call that was measured in the same rounds.

        Raises:
            ValueError: If ``other`` has another number of rounds.

        Example:
            >>> Timing((2.0, 6.0)).over(Timing((1.0, 2.0))).values
            (2.0, 3.0)
        """
        if len(other.values) != len(self.values):
            raise ValueError(
                f"other has {len(other.values)} rounds and this timing {len(self.values)}; "
                "ratios need two calls of the same rounds"
            )
        return Timing(
            tuple(own / base for own, base in zip(self.values, other.values, strict=True))
        )

    def _quantile(self, share: float) -> float:
        return float(np.quantile(self.values, share))


def time_briefly(calls: Mapping[str, Callable[[], Any]], device: torch.device) -> dict[str, float]:
    """Return the median seconds of each call, by name, over a few rounds of :func:`time_in_turn`.

    This chooses between implementations of one layer.
    """
    times = time_in_turn(
        calls,
        rounds=_FEW_ROUNDS,
        device=device,
        warmup=2,
        shortest=_LONG_ENOUGH,
        clock=clock_of(device),
    )
    return {name: time.median for name, time in times.items()}


def time_in_turn(
    calls: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    device: torch.device | str,
    warmup: int = 1,
    shortest: float = 0.0,
    hopeless: float = math.inf,
    clock: Clock = "wall",
    seed: int = 0,
) -> dict[str, Timing]:
    """Time every call once a round, in a new random order each round.

    Args:
        calls: The calls to time, by name. Their results are discarded. They run in the present
            mode: wrap inference in :func:`torch.no_grad` yourself.
        rounds: Rounds that count, at least 1.
        device: The device of the calls. Each measurement waits for an accelerator before and after,
            because its work goes on after the call has returned.
        warmup: Calls of each before the first round, which are not counted: the first call
            allocates, compiles and chooses algorithms.
        shortest: The least time of one measurement, in seconds. A shorter call is repeated within
            the measurement, as often as the time of its last warm-up call requires, and the time is
            divided by the number of repetitions. Use two warm-up calls then, because the first is
            seldom as fast as later ones.
        hopeless: A call of a quarter of a second or more that takes this many times as long as the
            fastest call in the first round is not made again: its time in this round stands for all
            rounds.
        clock: ``"wall"``, or ``"thread"`` for the CPU time of the calling thread. The latter leaves
            out the time in which another process has the core, but also all other threads: use it
            with one thread, on the CPU.
        seed: The seed of the order of calls.

    Returns:
        The seconds of each call, by name, in the order of ``calls``.

    Raises:
        ValueError: If ``rounds`` is below 1, ``warmup`` or ``shortest`` below 0, ``shortest`` is
            above 0 without a warm-up call, ``hopeless`` is not above 1, or ``clock`` is unknown or
            does not suit the device.

    Example:
        >>> x = torch.ones(100, 100)
        >>> calls = {"add": lambda: x + x, "multiply": lambda: x @ x}
        >>> times = time_in_turn(calls, rounds=3, device="cpu")
        >>> list(times), len(times["add"].values)
        (['add', 'multiply'], 3)
        >>> times["multiply"].over(times["add"]).median > 0
        True
    """
    place = torch.device(device)
    _check(clock, place)
    if warmup < 0:
        raise ValueError(f"warmup={warmup} must be 0 or more calls")
    if shortest < 0:
        raise ValueError(f"shortest={shortest} must be 0 or more seconds")
    if shortest > 0 and warmup == 0:
        raise ValueError(f"shortest={shortest} needs a warm-up call to tell how often to repeat")
    if not hopeless > 1:
        raise ValueError(f"hopeless={hopeless} must be above 1")
    measures = {
        name: _measure(call, place, warmup, shortest, clock) for name, call in calls.items()
    }
    (first,) = measured = in_turn(measures, rounds=min(rounds, 1), seed=seed)
    if rounds > 1:
        left = {
            name: measure
            for name, measure in measures.items()
            if first[name] < _LONG or first[name] < hopeless * min(first.values())
        }
        measured += [{**first, **more} for more in in_turn(left, rounds=rounds - 1, seed=seed + 1)]
    return {name: Timing(tuple(results[name] for results in measured)) for name in calls}


def in_turn(
    measures: Mapping[str, Callable[[], Result]], *, rounds: int, seed: int = 0
) -> list[dict[str, Result]]:
    """Call every measure once a round, in a new random order each round.

    Use it to measure several numbers, or something other than time. :func:`time_in_turn` does the
    same with :func:`seconds`.

    Args:
        measures: The functions to call, by name.
        rounds: How often to call each function, at least 1.
        seed: The seed of the order of calls.

    Returns:
        The results: a dict for each round, by name in the order of ``measures``.

    Raises:
        ValueError: If ``rounds`` is below 1.

    Example:
        >>> counter = iter(range(100))
        >>> in_turn({"a": lambda: next(counter), "b": lambda: -1}, rounds=2)
        [{'a': 0, 'b': -1}, {'a': 1, 'b': -1}]
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds} must be 1 or more")
    order = random.Random(seed)
    names = list(measures)
    measured = []
    for _ in range(rounds):
        results = {name: measures[name]() for name in order.sample(names, len(names))}
        measured.append({name: results[name] for name in names})
    return measured


def clock_of(device: torch.device | str) -> Clock:
    """Return the clock to measure with: with one thread, it ignores time of other processes.

    Args:
        device: The device of the calls.

    Example:
        >>> clock_of("cuda")
        'wall'
    """
    is_alone = torch.device(device).type == "cpu" and torch.get_num_threads() == 1
    return "thread" if is_alone else "wall"


def seconds(
    call: Callable[[], Any],
    *,
    device: torch.device | str,
    repeats: int = 1,
    clock: Clock = "wall",
) -> float:
    """Return how long one call takes, until the device has finished its work.

    Args:
        call: The call to time.
        device: The device of the call.
        repeats: How often to make the call; the time is divided by this number.
        clock: ``"wall"``, or ``"thread"`` for the CPU time of the calling thread alone.

    Raises:
        ValueError: If ``repeats`` is below 1, or ``clock`` is unknown or does not suit the device.

    Example:
        >>> seconds(lambda: torch.ones(10).sum(), device="cpu") > 0
        True
    """
    place = torch.device(device)
    _check(clock, place)
    if repeats < 1:
        raise ValueError(f"repeats={repeats} must be 1 or more")
    return _seconds(call, place, repeats, clock)


def _check(clock: str, device: torch.device) -> None:
    if clock not in _CLOCKS:
        raise ValueError(f"clock={clock!r} is unknown; choose from {', '.join(map(repr, _CLOCKS))}")
    if clock == "thread" and device.type != "cpu":
        raise ValueError(
            f"clock='thread' counts the CPU time of a thread, which does not include the work of "
            f"device={str(device)!r}; use clock='wall'"
        )


def _measure(
    call: Callable[[], Any], device: torch.device, warmup: int, shortest: float, clock: Clock
) -> Callable[[], float]:
    """Warm ``call`` up, and return a function that measures it once."""
    taken = [_seconds(call, device, 1, clock) for _ in range(warmup)]
    repeats = max(1, int(shortest / max(taken[-1], _RESOLUTION))) if shortest else 1
    return lambda: _seconds(call, device, repeats, clock)


def _seconds(call: Callable[[], Any], device: torch.device, repeats: int, clock: Clock) -> float:
    _synchronise(device)
    start = _now(clock)
    for _ in range(repeats):
        call()
    _synchronise(device)
    return (_now(clock) - start) / repeats


def _now(clock: Clock) -> float:
    return time.thread_time() if clock == "thread" else time.perf_counter()


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
