"""Timing several calls side by side: each once a round, in a new random order every round.

A machine does not run at one speed: other jobs come and go, clocks rise and fall. Calls that are
timed one after the other are timed on different machines, so to speak. Here all calls share every
round, so that whatever slows one round slows all of them, and two calls can be compared round by
round. The order within a round is random, because the call that ran before leaves the caches in
its own state, and in a fixed order it would always be the same call.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar, get_args

import numpy as np
import torch

__all__ = ["Clock", "Timing", "in_turn", "seconds", "time_in_turn"]

#: ``"wall"`` is elapsed time; ``"thread"`` is the CPU time of the calling thread alone.
Clock = Literal["wall", "thread"]
Result = TypeVar("Result")

_CLOCKS: Final = get_args(Clock)
#: Shorter times are taken for this one, in seconds, to know how often a call fits into another.
_RESOLUTION: Final = 1e-9


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


def time_in_turn(
    calls: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    device: torch.device | str,
    warmup: int = 1,
    shortest: float = 0.0,
    clock: Clock = "wall",
    seed: int = 0,
) -> dict[str, Timing]:
    """Time every call once a round, in a new random order each round.

    Args:
        calls: What to time, by name. Results are thrown away. Calls are made as they are: wrap
            inference in :func:`torch.no_grad` yourself.
        rounds: Rounds that count, at least 1.
        device: Where the calls work. An accelerator is waited for before and after each
            measurement, because it works on after the call that gave it the work has returned.
        warmup: Calls of each before the first round, which are not counted: the first one
            allocates, compiles and chooses algorithms.
        shortest: Seconds that one measurement takes at least. A call that is shorter is repeated
            within the measurement, as often as its last warm-up call says, and the time is divided
            by the number of repetitions. Two warm-up calls are better here, because the first is
            seldom as fast as the rest.
        clock: ``"wall"``, or ``"thread"`` for the CPU time of the calling thread. The latter does
            not count while another process has the core, and misses all other threads: use it
            with one thread, on the CPU.
        seed: Of the order of the calls.

    Returns:
        The seconds of each call, by name, in the order of ``calls``.

    Raises:
        ValueError: If ``rounds`` is below 1, ``warmup`` or ``shortest`` below 0, ``shortest`` is
            above 0 without a warm-up call, or ``clock`` is unknown or does not suit the device.

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
    measures = {
        name: _measure(call, place, warmup, shortest, clock) for name, call in calls.items()
    }
    measured = in_turn(measures, rounds=rounds, seed=seed)
    return {name: Timing(tuple(one[name] for one in measured)) for name in calls}


def in_turn(
    measures: Mapping[str, Callable[[], Result]], *, rounds: int, seed: int = 0
) -> list[dict[str, Result]]:
    """Call every measure once a round, in a new random order each round.

    For measurements of several numbers, or of something else than time;
    :func:`time_in_turn` is this with :func:`seconds`.

    Args:
        measures: What to call, by name.
        rounds: How often to call each, at least 1.
        seed: Of the order of the calls.

    Returns:
        What the measures returned: a dict for each round, by name in the order of ``measures``.

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


def seconds(
    call: Callable[[], Any],
    *,
    device: torch.device | str,
    repeats: int = 1,
    clock: Clock = "wall",
) -> float:
    """Return how long one call takes, until the device has finished its work.

    Args:
        call: What to time.
        device: Where it works.
        repeats: How often to call it; the time is divided by it.
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
            f"clock='thread' counts the CPU time of a thread, and device={str(device)!r} works "
            "without it; use clock='wall'"
        )


def _measure(
    call: Callable[[], Any], device: torch.device, warmup: int, shortest: float, clock: Clock
) -> Callable[[], float]:
    """Warm ``call`` up, and return what measures it once."""
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
