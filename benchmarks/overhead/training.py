"""The full training step: forward pass, backward pass with its masking, and optimizer."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks.common.rounds import Rounds, Sample, measure_rounds
from benchmarks.overhead.case import Case
from benchmarks.overhead.contenders import NEVER, PLAIN, REFERENCE, Contender
from benchmarks.overhead.workloads import Batch, loss_of
from sparseopt.speedup.timing import seconds

PHASES = ("passes", "step", "whole")


def measure(case: Case) -> dict[str, Any]:
    """Train every contender for one step a round, on the same batch; return medians and quartiles.

    By contender and phase: milliseconds, and ratio to the plain optimizer. The phases are
    ``passes`` (forward and backward), ``step`` and ``whole``. ``beyond``: how much longer ``step``
    takes than the plain optimizer's, as a share of the plain optimizer's ``whole``.
    """
    contenders, absent = case.line_up(case.contenders, NEVER)
    contenders.pop(REFERENCE, None)
    train = partial(_train, batch=case.about.batch(case.device), device=case.device)
    measure_rounds(contenders, train, rounds=1)
    rounds = measure_rounds(contenders, train, case.repeated(case.training_rounds))
    return {"absent": absent, "contenders": {name: _times(rounds, name) for name in contenders}}


def _train(contender: Contender, batch: Batch, device: torch.device) -> Sample:
    def passes() -> None:
        contender.model.zero_grad()
        loss_of(contender.model, batch).backward()

    both = seconds(passes, device=device)
    step = seconds(contender.step, device=device)
    return {"passes": both, "step": step, "whole": both + step}


def _times(rounds: Rounds, name: str) -> dict[str, Any]:
    beyond = rounds.of(name, "step") - rounds.of(PLAIN, "step")
    phases = {phase: rounds.summary(rounds.of(name, phase), to=(PLAIN, phase)) for phase in PHASES}
    return {**phases, "beyond": rounds.ratio(beyond, to=(PLAIN, "whole"))}
