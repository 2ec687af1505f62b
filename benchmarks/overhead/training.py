"""The whole training step: forward, backward with everything that masks, and the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from benchmarks.overhead.contenders import PLAIN, Contender
from benchmarks.overhead.rounds import Rounds, Sample, measure_rounds
from benchmarks.overhead.workloads import Batch, loss_of
from sparseopt.speedup.timing import seconds

PHASES = ("passes", "step", "whole")


def measure_training(
    contenders: Mapping[str, Contender], batch: Batch, rounds: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Train every contender for one step a round, on the same batch; return medians and quartiles.

    By contender and phase: milliseconds, and ratio to the plain optimizer. The phases are
    ``passes`` (forward and backward), ``step`` and ``whole``. ``beyond``: how much longer ``step``
    is than the plain optimizer's, as a share of the plain whole.
    """
    train = partial(_train, batch=batch, device=device)
    measure_rounds(contenders, train, rounds=1)
    measured = measure_rounds(contenders, train, rounds)
    return {name: _summarise(measured, name) for name in contenders}


def _train(contender: Contender, batch: Batch, device: torch.device) -> Sample:
    def passes() -> None:
        contender.model.zero_grad()
        loss_of(contender.model, batch).backward()

    both = seconds(passes, device=device)
    step = seconds(contender.step, device=device)
    return {"passes": both, "step": step, "whole": both + step}


def _summarise(rounds: Rounds, name: str) -> dict[str, Any]:
    times = {phase: rounds.of(name, phase) for phase in PHASES}
    beyond = times["step"] - rounds.of(PLAIN, "step")
    return {
        **{
            phase: {
                "milliseconds": rounds.milliseconds(time),
                "ratio": rounds.ratio(time, to=(PLAIN, phase)),
            }
            for phase, time in times.items()
        },
        "beyond": rounds.ratio(beyond, to=(PLAIN, "whole")),
    }
