"""Timing in rounds: every contender once a round, and compared within that round."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

#: Seconds by phase, of one contender in one round.
Sample = dict[str, float]
#: The samples of all contenders in one round, by name.
Round = dict[str, Sample]
#: Count, median and quartiles.
Quartiles = dict[str, float]
Item = TypeVar("Item")


def synchronise(device: torch.device) -> None:
    """Wait until ``device`` has done all that was asked of it; a CPU always has."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Return how long ``call`` takes until ``device`` has finished its work."""
    synchronise(device)
    start = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - start


def run_rounds(
    contenders: dict[str, Item],
    measure: Callable[[Item, int], Sample | None],
    *,
    rounds: range,
    on_round: Callable[[], Any],
) -> list[Round]:
    """Measure every contender once a round.

    The order is drawn anew for each round. In a fixed or merely rotated order everyone would
    always follow the same one, and find the caches as that one leaves them.

    Args:
        contenders: What to measure, by name.
        measure: Takes a contender and the number of the round; None if it has nothing to measure.
        rounds: The numbers of the rounds.
        on_round: Called after each round.
    """
    order = random.Random(0)
    names = list(contenders)
    measured = []
    for index in rounds:
        samples = {
            name: measure(contenders[name], index) for name in order.sample(names, len(names))
        }
        measured.append({name: sample for name in names if (sample := samples[name])})
        on_round()
    return measured


def quartiles(values: Sequence[float]) -> Quartiles | None:
    """Return count, median and quartiles of ``values``; None if there are none.

    Example:
        >>> quartiles([1.0, 2.0, 3.0, 4.0, 5.0])
        {'count': 5, 'q1': 2.0, 'median': 3.0, 'q3': 4.0}
    """
    if not values:
        return None
    q1, median, q3 = (round(float(value), 6) for value in np.quantile(values, (0.25, 0.5, 0.75)))
    return {"count": len(values), "q1": q1, "median": median, "q3": q3}


def milliseconds(rounds: Sequence[Round], name: str, phase: str) -> Quartiles | None:
    """Summarise the milliseconds of a contender's phase, over the rounds in which it had it."""
    return quartiles([1e3 * samples[name][phase] for samples in _with(rounds, name, phase)])


def ratios(
    rounds: Sequence[Round], name: str, phase: str, *, to: tuple[str, str]
) -> Quartiles | None:
    """Summarise a contender's phase over the phase of another, ``to``, in the same round."""
    other, other_phase = to
    return quartiles(
        [
            samples[name][phase] / samples[other][other_phase]
            for samples in _with(rounds, name, phase)
        ]
    )


def beyond(
    rounds: Sequence[Round], name: str, phase: str, *, base: str, per: tuple[str, str]
) -> Quartiles | None:
    """Summarise how much longer a phase is than that of ``base``, as a share of the phase ``per``.

    All three are of the same round.
    """
    other, other_phase = per
    return quartiles(
        [
            (samples[name][phase] - samples[base][phase]) / samples[other][other_phase]
            for samples in _with(rounds, name, phase)
        ]
    )


def _with(rounds: Sequence[Round], name: str, phase: str) -> list[Round]:
    return [samples for samples in rounds if phase in samples.get(name, {})]
