"""Where the time of a step goes, by operator of torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, _ExperimentalConfig, profile

from benchmarks.overhead.contenders import Contender
from benchmarks.overhead.steps import StepTimer

#: Rows of a profile, the rest of which is one number.
ROWS = 12
#: What calls itself so is one of torch's operators, and all else is not.
OPERATOR = "::"

Row = dict[str, Any]


def measure_profile(
    contender: Contender, timer: StepTimer, rounds: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Profile ``rounds`` steps, by phase: ``step`` and ``update``.

    Returns:
        By phase, the averages of one call. ``calls``: how many were profiled. ``operators``: the
        largest, with calls, milliseconds of their own and share of the time spent in all threads.
        ``others``: the remaining operators. ``outside``: Python, NumPy, and waiting for other
        threads or the device. ``kernels``: the same of a GPU; empty on a CPU.
    """
    events: dict[str, list[list[Row]]] = defaultdict(list)
    for _ in range(rounds):
        phase = "update" if contender.updates_next else "step"
        timer.prepare(contender)
        events[phase].append(_events(contender, device))
    return {phase: _summarise(each) for phase, each in events.items()}


def _events(contender: Contender, device: torch.device) -> list[Row]:
    """Profile one step: the time that each operator takes itself, without those that it calls."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    # Layers are brought together in threads that were there before the profiler.
    every_thread = _ExperimentalConfig(profile_all_threads=True)
    with profile(activities=activities, experimental_config=every_thread) as profiler:
        contender.step()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
    return [
        {
            "name": event.key,
            "device": event.device_type != DeviceType.CPU,
            "count": event.count,
            "microseconds": event.self_device_time_total
            if event.device_type != DeviceType.CPU
            else event.self_cpu_time_total,
        }
        for event in profiler.key_averages()
        if event.device_type == DeviceType.CPU or not event.is_user_annotation
    ]


def _summarise(steps: Sequence[Sequence[Row]]) -> dict[str, Any]:
    calls = len(steps)
    events = pd.DataFrame([event for step in steps for event in step])
    by_name = events.groupby(["device", "name"])[["count", "microseconds"]].sum() / calls
    by_name = by_name.sort_values("microseconds", ascending=False).reset_index()
    host, kernels = by_name[~by_name["device"]], by_name[by_name["device"]]
    inside = host["name"].str.contains(OPERATOR, regex=False)
    total = host["microseconds"].sum()
    return {
        "calls": calls,
        "operators": _rows(host[inside][:ROWS], total),
        "others": _time(host[inside][ROWS:]["microseconds"].sum(), total),
        "outside": _time(host[~inside]["microseconds"].sum(), total),
        "kernels": _rows(kernels[:ROWS], kernels["microseconds"].sum()),
    }


def _rows(events: pd.DataFrame, total: float) -> list[Row]:
    return [
        {
            "name": row["name"],
            "calls": round(float(row["count"]), 4),
            **_time(row["microseconds"], total),
        }
        for row in events.to_dict("records")
    ]


def _time(microseconds: float, total: float) -> Row:
    return {
        "milliseconds": round(float(microseconds) / 1e3, 4),
        "share": round(float(microseconds) / total, 4) if total else 0.0,
    }
