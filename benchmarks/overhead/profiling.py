"""The time of a step by operator of torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import pandas as pd
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, _ExperimentalConfig, profile, record_function

from benchmarks.common.rounds import measure_rounds
from benchmarks.overhead.case import Case
from benchmarks.overhead.contenders import OURSELVES, PLAIN, Contender
from benchmarks.overhead.steps import StepTimer

#: Cycles of steps, each with one update, that are profiled.
CYCLES = 3
#: The number of operators that a profile keeps, the longest first.
ROWS = 20
#: Only the names of torch's operators contain this.
OPERATOR = "::"
OUTSIDE = "Python, NumPy, waiting"


def measure(case: Case) -> dict[str, Any]:
    """Profile ourselves and the plain optimizer.

    Returns:
        By contender and phase, ``step`` and ``update``, the averages of one call. ``operators``:
        the operators that take most time, with calls, self time in milliseconds and share of the
        total time (of all threads on the CPU, of the kernels on a GPU). ``outside``: Python, NumPy,
        and waiting for other threads or the device.
    """
    contenders, _ = case.line_up([OURSELVES], case.update_every)
    timer = StepTimer(dict(case.build_model().named_parameters()), case.device)
    measure_rounds(contenders, timer, case.update_every)
    profiles = {name: _profile(contenders[name], timer, case) for name in (PLAIN, OURSELVES)}
    return {"absent": {}, "operators": profiles}


def _profile(contender: Contender, timer: StepTimer, case: Case) -> dict[str, Any]:
    steps: dict[str, list[pd.DataFrame]] = defaultdict(list)
    for _ in range(CYCLES * case.update_every):
        phase = "update" if contender.updates_next else "step"
        timer.prepare(contender)
        steps[phase].append(_operators(contender, case.device))
    return {phase: _average(each) for phase, each in steps.items()}


def _operators(contender: Contender, device: torch.device) -> pd.DataFrame:
    """Profile one step: the self time of each operator, without the operators that it calls."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    # Threads that gather layers existed before the profiler.
    every_thread = _ExperimentalConfig(profile_all_threads=True)
    with profile(activities=activities, experimental_config=every_thread) as profiler:
        # This event gets the time between operators.
        with record_function(OUTSIDE):
            contender.step()
        if on_gpu:
            torch.cuda.synchronize(device)
    microseconds = attrgetter("self_device_time_total" if on_gpu else "self_cpu_time_total")
    rows = [
        (event.key if OPERATOR in event.key else OUTSIDE, event.count, microseconds(event) / 1e3)
        for event in profiler.key_averages()
        # Kernels have events of their own too, and would be counted twice.
        if event.device_type == DeviceType.CPU
    ]
    return pd.DataFrame(rows, columns=["name", "calls", "milliseconds"])


def _average(steps: Sequence[pd.DataFrame]) -> dict[str, Any]:
    totals = pd.concat(steps).groupby("name").sum() / len(steps)
    totals["share"] = totals["milliseconds"] / totals["milliseconds"].sum()
    rows = totals.sort_values("share", ascending=False).round(4).reset_index().to_dict("records")
    operators = [row for row in rows if row["name"] != OUTSIDE]
    (outside,) = (row for row in rows if row["name"] == OUTSIDE)
    return {"calls": len(steps), "operators": operators[:ROWS], "outside": outside}
