"""The figures of kind ``profile``: where the time of our steps goes, and how low they could go."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.overhead.bandwidth import Memory, lines_touched
from benchmarks.overhead.building import Case, build_model
from benchmarks.overhead.contenders import AGAIN, OURS, PLAIN, REFERENCE, Contender, Sparsity
from benchmarks.overhead.floor import PARTS, UPDATE_PARTS, Floor, ways
from benchmarks.overhead.profiling import profile_functions, profile_operators
from benchmarks.overhead.steps import StepTimer
from benchmarks.overhead.timing import Round, Sample, milliseconds, ratios, run_rounds

#: Who is explained.
OURSELVES = next(iter(OURS))
#: Cycles of steps, each with an update, that are profiled by operator, and then by function.
CYCLES = 3
CHOICE = "choice"
MEMORY = "memory"

Measure = Callable[[int], Sample | None]


def explain(
    contenders: dict[str, Contender],
    case: Case,
    timer: StepTimer,
    *,
    update_every: int,
    rounds: int,
    quick: bool,
    device: torch.device,
    on_round: Callable[[], Any],
) -> dict[str, Any]:
    """Step ``contenders`` beside steps that are the floor, then profile them.

    Args:
        contenders: The plain optimizer, twice, the reference, and ours.
        case: What all have in common.
        timer: Steps them.
        update_every: Steps between mask updates.
        rounds: Rounds that count, after a cycle of warming up.
        quick: Whether the model is a tiny one.
        device: Where everything is.
        on_round: Called after each round.

    Returns:
        ``times``: of the contenders, as in the figures ``steps``. ``floor``: by way, the parts of a
        step, and the whole. ``choice``: by way, the parts of choosing what an update moves.
        ``memory``: bytes, and how long it takes to read and to copy so many. All in milliseconds
        and as ratios to the plain step of the same round, or the reference's where masks move;
        medians, with quartiles where it is a whole.
        ``operators`` and ``functions``: the profiles. ``lines``: the share of cache lines with a
        live weight.
    """
    masks = contenders[OURSELVES].masks()
    floors = {
        way.name: Floor(
            build_model(case.workload, quick, device),
            case.optimizer,
            Sparsity(case.density, update_every),
            masks=masks,
            way=way,
        )
        for way in ways(device, torch.get_num_threads())
    }
    count = sum(weight.numel() for weight in contenders[PLAIN].model.parameters())
    measures: dict[str, Measure] = {
        **{name: partial(timer, contender) for name, contender in contenders.items()},
        **{name: partial(_step_floor, floor, timer) for name, floor in floors.items()},
        MEMORY: Memory(count, device),
    }
    measured = run_rounds(
        measures,
        lambda measure, index: measure(index),
        rounds=range(update_every + rounds),
        on_round=on_round,
    )[update_every:]
    reference = REFERENCE if REFERENCE in contenders else PLAIN
    return {
        "lines": lines_touched(masks),
        "times": {
            name: {
                "step": _summary(measured, name, "step", PLAIN),
                "update": _summary(measured, name, "update", reference),
            }
            for name in (PLAIN, AGAIN, OURSELVES)
        },
        "floor": {
            name: {
                **{part: _medians(measured, name, part, PLAIN) for part in PARTS},
                "step": _summary(measured, name, "step", PLAIN),
            }
            for name in floors
        },
        CHOICE: {
            name: {
                **{part: _medians(measured, name, part, reference) for part in UPDATE_PARTS},
                CHOICE: _summary(measured, name, CHOICE, reference),
            }
            for name in floors
        },
        MEMORY: {
            "bytes": 4 * count,
            **{part: _medians(measured, MEMORY, part, PLAIN) for part in ("read", "copy")},
        },
        **_profiles(contenders, timer, update_every, update_every + rounds, device),
    }


def _step_floor(floor: Floor, timer: StepTimer, index: int) -> Sample | None:
    sample = timer(floor, index)
    assert sample is not None
    parts, choice = floor.took, floor.choose()
    whole = {"step": sample["step"], CHOICE: sum(choice.values())}
    return {**parts, **choice, **whole}


def _summary(rounds: list[Round], name: str, phase: str, base: str) -> dict[str, Any]:
    return {
        "milliseconds": milliseconds(rounds, name, phase),
        "ratio": ratios(rounds, name, phase, to=(base, "step")),
    }


def _medians(rounds: list[Round], name: str, phase: str, base: str) -> dict[str, float]:
    return {
        unit: summary["median"] for unit, summary in _summary(rounds, name, phase, base).items()
    }


def _profiles(
    contenders: dict[str, Contender],
    timer: StepTimer,
    update_every: int,
    start: int,
    device: torch.device,
) -> dict[str, Any]:
    middle = start + CYCLES * update_every
    end = middle + CYCLES * update_every
    ours = contenders[OURSELVES]
    return {
        "operators": {
            # Plain steps are all alike.
            PLAIN: profile_operators(
                contenders[PLAIN], timer, range(start, start + update_every), device
            ),
            OURSELVES: profile_operators(ours, timer, range(start, middle), device),
        },
        "functions": profile_functions(ours, timer, range(middle, end)),
    }
