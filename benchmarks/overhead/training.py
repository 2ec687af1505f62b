"""The whole training step: forward, backward with the gradient hooks, and the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.overhead.contenders import PLAIN, Contender
from benchmarks.overhead.timing import Round, Sample, milliseconds, ratios, run_rounds, seconds
from benchmarks.overhead.workloads import Workload

PHASES = ("passes", "step", "whole")


def measure_training_steps(
    contenders: Sequence[Contender],
    workload: Workload,
    *,
    batch_size: int,
    rounds: int,
    device: torch.device,
    on_round: Callable[[], Any],
) -> list[Round]:
    """Train every contender for one step a round, on the same random images.

    The phases of a sample are ``passes`` (forward and backward), ``step`` and ``whole``. See
    :func:`run_rounds`.

    Raises:
        ValueError: If the workload has no training step.
    """
    if workload.sample_shape is None:
        raise ValueError(f"workload={workload.title!r} has weights only and cannot be trained")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, *workload.sample_shape, generator=generator).to(device)
    labels = torch.randint(workload.classes, (batch_size,), generator=generator).to(device)
    return run_rounds(
        contenders,
        lambda contender, _: _train(contender, images, labels, device),
        rounds=rounds,
        warmup=1,
        on_round=on_round,
    )


def _train(contender: Contender, images: Tensor, labels: Tensor, device: torch.device) -> Sample:
    def passes() -> None:
        contender.optimizer.zero_grad()
        F.cross_entropy(contender.model(images), labels).backward()

    both = seconds(passes, device)
    step = seconds(contender.optimizer.step, device)
    return {"passes": both, "step": step, "whole": both + step}


def summarise_training(rounds: Sequence[Round]) -> dict[str, dict[str, Any]]:
    """Return, by contender and phase, the milliseconds and the ratio to the plain optimizer."""
    return {
        name: {
            phase: {
                "milliseconds": milliseconds(rounds, name, phase),
                "ratio": ratios(rounds, name, phase, to=(PLAIN, phase)),
            }
            for phase in PHASES
        }
        for name in rounds[0]
    }
