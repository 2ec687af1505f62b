"""Which files of the package one ``step()`` runs through, and its calls from file to file.

``python -m tests.support.step_trace`` prints both numbers for an ordinary step and an update step,
and the calls from file to file, in the order of the first of each.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

import sparseopt
from sparseopt import SparseOptimizer

PACKAGE = Path(sparseopt.__file__).parent
#: An update step comes every so many steps; the steps before the traced one fill all caches.
DELTA_T = 6


@dataclass
class StepTrace:
    """The files that a call ran through, and its calls from one file of the package to another."""

    files: set[str] = field(default_factory=set)
    crossings: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def crossing_calls(self) -> int:
        """Number of calls from a function of one file to a function of another."""
        return sum(self.crossings.values())


def trace_call(call: Callable[[], Any]) -> StepTrace:
    """Return the trace of one call.

    A call from the package through torch back into the package counts as a call between the two
    files of the package.
    """
    trace = StepTrace()
    stack: list[str | None] = []

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            name = _file_in_package(frame)
            caller = next((above for above in reversed(stack) if above is not None), None)
            if name is not None:
                trace.files.add(name)
                if caller is not None and caller != name:
                    trace.crossings[caller, name] += 1
            stack.append(name)
        elif event == "return" and stack:
            stack.pop()

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return trace


def trace_steps() -> dict[str, StepTrace]:
    """Return the traces of an ordinary step and an update step: four layers, SGD, RigL."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 8))
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        model,
        method="rigl",
        density=0.2,
        state="live",
        total_steps=1000,
        delta_t=DELTA_T,
        seed=0,
    )
    traces = {}
    for step in range(1, DELTA_T + 1):
        optimizer.zero_grad()
        model(torch.randn(4, 16)).square().mean().backward()
        trace = trace_call(optimizer.step)
        if step == DELTA_T - 1:
            traces["ordinary step"] = trace
    traces["update step"] = trace
    return traces


def _file_in_package(frame: FrameType) -> str | None:
    path = Path(frame.f_code.co_filename)
    return str(path.relative_to(PACKAGE)) if path.is_relative_to(PACKAGE) else None


if __name__ == "__main__":
    for kind, trace in trace_steps().items():
        print(f"{kind}: {len(trace.files)} files, {trace.crossing_calls} calls between files")
        for (caller, called), count in trace.crossings.items():
            print(f"  {caller} -> {called}: {count}")
