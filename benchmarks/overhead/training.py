"""The whole training step: forward, backward with everything that masks, and the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.overhead.contenders import PLAIN, Contender
from benchmarks.overhead.timing import (
    Round,
    Sample,
    beyond,
    milliseconds,
    ratios,
    run_rounds,
    seconds,
)
from benchmarks.overhead.workloads import Batch, loss_of

PHASES = ("passes", "step", "whole")


def measure_training(
    contenders: dict[str, Contender],
    batch: Batch,
    *,
    rounds: int,
    device: torch.device,
    on_round: Callable[[], Any],
) -> dict[str, dict[str, Any]]:
    """Train every contender for one step a round, on the same batch; return medians and quartiles.

    By contender and phase: milliseconds, and ratio to the plain optimizer. The phases are
    ``passes`` (forward and backward), ``step`` and ``whole``. ``beyond``: how much longer ``step``
    is than the plain optimizer's, as a share of the plain whole.
    """

    def train(contender: Contender, _: int) -> Sample:
        return _train(contender, batch, device)

    run_rounds(contenders, train, rounds=range(1), on_round=on_round)
    measured = run_rounds(contenders, train, rounds=range(1, 1 + rounds), on_round=on_round)
    return {name: _summarise(measured, name) for name in contenders}


def _train(contender: Contender, batch: Batch, device: torch.device) -> Sample:
    def passes() -> None:
        contender.model.zero_grad()
        loss_of(contender.model, batch).backward()

    both = seconds(passes, device)
    step = seconds(contender.step, device)
    return {"passes": both, "step": step, "whole": both + step}


def _summarise(rounds: Sequence[Round], name: str) -> dict[str, Any]:
    times = {
        phase: {
            "milliseconds": milliseconds(rounds, name, phase),
            "ratio": ratios(rounds, name, phase, to=(PLAIN, phase)),
        }
        for phase in PHASES
    }
    return {**times, "beyond": beyond(rounds, name, "step", base=PLAIN, per=(PLAIN, "whole"))}
