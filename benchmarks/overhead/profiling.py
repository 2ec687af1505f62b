"""Where the time of a step goes: by operator of torch, and by function of Python."""

from __future__ import annotations

import cProfile
import pstats
import re
import sysconfig
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, _ExperimentalConfig, profile, record_function

from benchmarks.overhead.contenders import Contender
from benchmarks.overhead.steps import StepTimer
from benchmarks.overhead.timing import synchronise

#: Rows of a profile, the rest of which is one number.
ROWS = 12
MARK = "the whole step"
#: What calls itself so is one of torch's operators, and all else is not.
OPERATOR = "::"
ROOTS = (Path(sysconfig.get_paths()["purelib"]), Path(__file__).resolve().parents[2])
ADDRESS = re.compile(r" at 0x[0-9a-f]+")

Row = dict[str, Any]


class Operators:
    """Sums up the time that calls spend in each operator, itself and not those that it calls."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._calls = 0
        self._whole = 0.0
        self._host: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
        self._kernels: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])

    def add(self, call: Callable[[], Any]) -> None:
        """Profile ``call`` once."""
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        # Layers are brought together in threads that were there before the profiler.
        every_thread = _ExperimentalConfig(profile_all_threads=True)
        synchronise(self._device)
        with profile(activities=activities, experimental_config=every_thread) as profiler:
            with record_function(MARK):
                call()
            synchronise(self._device)
        self._calls += 1
        for row in profiler.key_averages():
            on_host = row.device_type == DeviceType.CPU
            if row.key == MARK and on_host:
                self._whole += row.cpu_time_total
            elif not on_host and (row.key == MARK or row.is_user_annotation):
                continue
            known = self._host if on_host else self._kernels
            known[row.key][0] += row.count
            known[row.key][1] += row.self_cpu_time_total if on_host else row.self_device_time_total

    def summary(self) -> dict[str, Any]:
        """Return what a call spends, on average.

        Returns:
            ``calls``: how many were profiled. ``milliseconds``: how long one takes, the profiler
            included. ``operators``: the largest, with calls, milliseconds and share of the time
            spent in all threads that were seen. ``outside``: Python, NumPy, and waiting for other
            threads or the device. ``others``: the remaining operators. ``kernels``: the same of a
            GPU's; empty on a CPU.
        """
        total = sum(time for _, time in self._host.values())
        inside = {name: row for name, row in self._host.items() if OPERATOR in name}
        rows = self._rows(inside, total)
        outside = total - sum(time for _, time in inside.values())
        others = sum(row["milliseconds"] for row in rows[ROWS:])
        of_kernels = sum(time for _, time in self._kernels.values())
        return {
            "calls": self._calls,
            "milliseconds": _round(self._whole / self._calls / 1e3),
            "operators": rows[:ROWS],
            "outside": self._row(outside, total),
            "others": self._row(1e3 * self._calls * others, total),
            "kernels": self._rows(self._kernels, of_kernels)[:ROWS],
        }

    def _rows(self, known: dict[str, list[float]], total: float) -> list[Row]:
        largest = sorted(known.items(), key=lambda item: -item[1][1])
        return [
            {"name": name, "calls": _round(count / self._calls), **self._row(time, total)}
            for name, (count, time) in largest
        ]

    def _row(self, microseconds: float, total: float) -> Row:
        share = microseconds / total if total else 0.0
        return {
            "milliseconds": _round(microseconds / self._calls / 1e3),
            "share": _round(share),
        }


def profile_operators(
    contender: Contender, timer: StepTimer, rounds: range, device: torch.device
) -> dict[str, Any]:
    """Step ``contender`` and return :meth:`Operators.summary` by phase, ``step`` and ``update``."""
    phases: dict[str, Operators] = {}
    for index in rounds:
        phase = "update" if contender.updates_next else "step"
        timer.give_gradients(contender, index)
        phases.setdefault(phase, Operators(device)).add(contender.step)
    return {phase: operators.summary() for phase, operators in phases.items()}


def profile_functions(contender: Contender, timer: StepTimer, rounds: range) -> list[Row]:
    """Step ``contender`` and return the functions in which its mask updates spend most time.

    A function's time is without those that it calls. What is written in C has its own row, NumPy's
    and torch's functions among them.
    """
    profiler = cProfile.Profile()
    updates = 0
    for index in rounds:
        update = contender.updates_next
        timer.give_gradients(contender, index)
        if update:
            updates += 1
            profiler.runcall(contender.step)
        else:
            contender.step()
    if not updates:
        return []
    functions = pstats.Stats(profiler).stats  # type: ignore[attr-defined]
    total = sum(own for _, _, own, _, _ in functions.values())
    largest = sorted(functions.items(), key=lambda item: -item[1][2])
    return [
        {
            "name": _label(*function),
            "calls": _round(count / updates),
            "milliseconds": _round(1e3 * own / updates),
            "share": _round(own / total),
        }
        for function, (_, count, own, _, _) in largest[:ROWS]
    ]


def _label(file: str, _: int, function: str) -> str:
    if file == "~":
        return ADDRESS.sub("", function.strip("<>"))
    path = Path(file)
    for root in ROOTS:
        if path.is_relative_to(root):
            return f"{path.relative_to(root).as_posix()}: {function}"
    return f"{path.name}: {function}"


def _round(value: float) -> float:
    return round(float(value), 4)
