"""Times all implementations of one layer, in turn."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from benchmarks.common.units import MILLI
from benchmarks.speed.kernels.implementations import OURS, Contender, dense, ours
from benchmarks.speed.kernels.layers import Layer
from benchmarks.speed.kernels.peers import peers
from sparseopt.speedup.timing import Clock, Timing, in_turn, seconds

Row = dict[str, Any]

#: The density at which other libraries are measured, and the parts of our training step.
HEADLINE = 0.1
#: Code that takes this many times as long as the fastest dense code is timed only once.
HOPELESS = 1.5
#: The least time of one measurement, in seconds.
SHORTEST = 2e-3
#: The shortest time, in seconds, that is used to compute the number of repetitions.
RESOLUTION = 1e-7


def measure_layer(
    layer: Layer, densities: Sequence[float], training: bool, rounds: int, clock: Clock
) -> Row:
    """Time all implementations of a layer.

    Args:
        layer: The layer.
        densities: The densities at which our kernels are timed.
        training: Whether gradients are timed too.
        rounds: Rounds that count.
        clock: The clock.

    Returns:
        A record: the shape, the machine's load before and after, a row for each contender, and the
        reasons why libraries are missing.
    """
    before = os.getloadavg()[0]
    contenders = list(dense(layer, training))
    for density in densities:
        contenders += ours(layer, density, training, parts=training and density == HEADLINE)
    missing = {}
    if HEADLINE in densities:
        for name, found, reason in peers(layer, HEADLINE, training):
            contenders += found
            if reason is not None:
                missing[name] = reason
    return {
        **layer.as_record(),
        "rounds": rounds,
        "load": [round(load, 1) for load in (before, os.getloadavg()[0])],
        "missing": missing,
        "times": time_contenders(contenders, rounds, clock),
    }


def time_contenders(contenders: Sequence[Contender], rounds: int, clock: Clock) -> list[Row]:
    """Time contenders in turn; hopeless contenders only once.

    Returns:
        A row for each contender with its milliseconds (median and quartiles) and, unless it is
        dense, the ratio of the fastest dense time to its own, round by round.
    """
    trials = [_trial(one, clock) for one in contenders]
    worth = [
        index
        for index, one in enumerate(contenders)
        if one.implementation == OURS
        or trials[index] <= HOPELESS * _fastest_dense(one, contenders, trials)
    ]
    measures = {
        str(index): partial(
            seconds,
            contenders[index].call,
            device="cpu",
            repeats=max(1, int(SHORTEST / max(trials[index], RESOLUTION))),
            clock=clock,
        )
        for index in worth
    }
    measured = in_turn(measures, rounds=rounds)
    timings = [
        Timing(tuple(one.get(str(index), trial) for one in measured))
        for index, trial in enumerate(trials)
    ]
    return [_row(index, contenders, timings, index in worth) for index in range(len(contenders))]


def _trial(contender: Contender, clock: Clock) -> float:
    contender.call()
    return seconds(contender.call, device="cpu", clock=clock)


def _fastest_dense(
    contender: Contender, contenders: Sequence[Contender], times: Sequence[float]
) -> float:
    index = _rival(contender, contenders, times)
    return float("inf") if index is None else times[index]


def _rival(
    contender: Contender, contenders: Iterable[Contender], times: Sequence[float]
) -> int | None:
    """The fastest dense code for the same computation in the same precision."""
    same = [
        index
        for index, one in enumerate(contenders)
        if one.density is None
        and (one.what, one.precision) == (contender.what, contender.precision)
    ]
    return min(same, key=lambda index: times[index], default=None)


def _row(
    index: int, contenders: Sequence[Contender], timings: Sequence[Timing], in_turn: bool
) -> Row:
    one, timing = contenders[index], timings[index]
    row: Row = {
        "what": one.what,
        "precision": one.precision,
        "implementation": one.implementation,
        "milliseconds": quartiles(timing, MILLI),
    }
    if not in_turn:
        row["once"] = True
    if one.density is None:
        return row
    row["density"] = one.density
    rival = _rival(one, contenders, [timing.median for timing in timings])
    if rival is not None:
        row["speedup"] = quartiles(timings[rival].over(timing), 1)
    return row


def quartiles(timing: Timing, unit: float) -> list[float]:
    """Return the median and both quartiles, in ``1 / unit`` of seconds, with four digits."""
    return [float(f"{unit * value:.4g}") for value in (timing.median, timing.q1, timing.q3)]
