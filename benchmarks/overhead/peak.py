"""Peak memory of a step: how far it rises above what is held between steps.

On the CPU a fresh process reads the kernel's high-water mark of its resident memory. That counts
whatever allocates, torch or NumPy or a library of C++, which a profiler of torch does not. Large
blocks are given back to the kernel as soon as they are freed, so what earlier steps needed is not
taken for what this one does.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.overhead.building import Case, build_model, maker
from benchmarks.overhead.contenders import Sparsity
from benchmarks.overhead.steps import StepTimer

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")
#: What resets the high-water mark.
RESET_PEAK = "5"
#: From this size on, in bytes, glibc gives every block its own pages and returns them at once.
OWN_PAGES = 1 << 16
UPDATE_EVERY = 3


def peak_of_steps(case: Case, name: str, *, quick: bool, device: str) -> dict[str, int] | None:
    """Return the bytes that steps of a contender need for a moment, by phase.

    ``step`` and ``update`` begin with the weights as a forward pass sees them and the accumulation
    of gradients. None where this system has no way of knowing.
    """
    if not can_measure(device):
        return None
    question = {"case": asdict(case), "name": name, "quick": quick, "device": device}
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": str(OWN_PAGES),
        "MALLOC_TRIM_THRESHOLD_": str(OWN_PAGES),
    }
    finished = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps(question)],
        cwd=Path(__file__).resolve().parents[2],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(finished.stdout.splitlines()[-1])


def can_measure(device: str) -> bool:
    """Whether there is a high-water mark for ``device`` here."""
    return torch.device(device).type == "cuda" or (STATUS.exists() and RESET.exists())


def rise(call: Callable[[], Any], device: torch.device) -> int:
    """Return how many bytes more than before are in use at the worst moment of ``call``."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    RESET.write_text(RESET_PEAK)
    before = _resident("VmRSS")
    call()
    return max(0, _resident("VmHWM") - before)


def _resident(entry: str) -> int:
    found = re.search(rf"{entry}:\s+(\d+) kB", STATUS.read_text())
    assert found is not None
    return 1024 * int(found[1])


def _measure(question: dict[str, Any]) -> dict[str, int]:
    case, device = Case(**question["case"]), torch.device(question["device"])
    model = build_model(case.workload, question["quick"], device)
    names = [name for name, _ in model.named_parameters()]
    largest = max(weight.numel() for weight in model.parameters())
    make = maker(question["name"], model, device)
    contender = make(model, case.optimizer, Sparsity(case.density, UPDATE_EVERY))
    timer = StepTimer(names, largest, UPDATE_EVERY, device)
    peaks: dict[str, int] = {}
    for index in range(2 * UPDATE_EVERY):
        samples: list[Any] = []

        def step(index: int = index, samples: list[Any] = samples) -> None:
            samples.append(timer(contender, index))

        peak = rise(step, device)
        # The first cycle makes the state, and whatever else a library keeps from then on.
        if index >= UPDATE_EVERY and samples[0] is not None:
            phase = "update" if "update" in samples[0] else "step"
            peaks[phase] = max(peak, peaks.get(phase, 0))
    return peaks


if __name__ == "__main__":
    print(json.dumps(_measure(json.loads(sys.argv[1]))))
