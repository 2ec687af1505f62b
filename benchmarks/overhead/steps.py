"""The optimizer alone: its step, the masking of gradients before it, and the mask update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.overhead.contenders import PLAIN, REFERENCE, Contender
from benchmarks.overhead.timing import (
    Round,
    Sample,
    milliseconds,
    quartiles,
    ratios,
    run_rounds,
    seconds,
)

#: As small as gradients are, and large enough to keep optimizers out of denormal numbers.
GRADIENT_SCALE = 1e-3
GRADIENT_SETS = 1024
#: A whole number of cache lines, so that all gradients are aligned alike.
SHIFT = 64


class Gradients:
    """Fixed random gradients, other ones each round, so that masks keep moving.

    They are windows into one tensor of random numbers, so a thousand sets take hardly more memory
    than the largest gradient.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], device: torch.device) -> None:
        self._shapes = [parameter.shape for parameter in parameters]
        largest = max(shape.numel() for shape in self._shapes)
        generator = torch.Generator().manual_seed(0)
        numbers = torch.randn(largest + GRADIENT_SETS * SHIFT, generator=generator)
        self._numbers = (GRADIENT_SCALE * numbers).to(device)

    def of_round(self, index: int) -> list[Tensor]:
        """Return one gradient for each parameter."""
        numbers = self._numbers[index % GRADIENT_SETS * SHIFT :]
        return [numbers[: shape.numel()].view(shape) for shape in self._shapes]


def measure_steps(
    contenders: Sequence[Contender],
    *,
    rounds: int,
    warmup: int,
    device: torch.device,
    on_round: Callable[[], Any],
) -> list[Round]:
    """Step every contender once a round; see :func:`run_rounds`.

    The phases of a sample are ``backward``, which accumulates the gradients and runs the hooks on
    them, and then either ``step`` or, where masks moved, ``update``.
    """
    gradients = Gradients(contenders[0].parameters, device)
    return run_rounds(
        contenders,
        lambda contender, index: _measure(contender, gradients.of_round(index), device),
        rounds=rounds,
        warmup=warmup,
        on_round=on_round,
    )


def _measure(contender: Contender, gradients: list[Tensor], device: torch.device) -> Sample:
    parameters = contender.parameters
    # Gradients are accumulated into zeros, so that no allocation is timed.
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad.zero_()
    phase = "update" if contender.is_update_step else "step"
    # With the parameters as roots, backward() is nothing but the accumulation and its hooks.
    backward = seconds(lambda: torch.autograd.backward(parameters, gradients), device)
    return {"backward": backward, phase: seconds(contender.optimizer.step, device)}


def summarise_steps(rounds: Sequence[Round]) -> dict[str, dict[str, Any]]:
    """Return medians and quartiles by contender; None where a contender has no such phase.

    ``step`` and ``update``: milliseconds, and ratio to the plain optimizer's step of the same
    round. ``update`` also as a ratio to the reference optimizer's step. ``masking``: what hooks add
    to the accumulation of gradients, in milliseconds and relative to the plain optimizer's step.
    """
    reference = REFERENCE if REFERENCE in rounds[0] else PLAIN
    return {
        name: {
            "step": {
                "milliseconds": milliseconds(rounds, name, "step"),
                "ratio": ratios(rounds, name, "step", to=(PLAIN, "step")),
            },
            "update": {
                "milliseconds": milliseconds(rounds, name, "update"),
                "ratio": ratios(rounds, name, "update", to=(PLAIN, "step")),
                "ratio_to_reference": ratios(rounds, name, "update", to=(reference, "step")),
            },
            "masking": _masking(rounds, name),
        }
        for name in rounds[0]
    }


def _masking(rounds: Sequence[Round], name: str) -> dict[str, Any]:
    added = [
        (samples[name]["backward"] - samples[PLAIN]["backward"], samples[PLAIN]["step"])
        for samples in rounds
        if "step" in samples[name]
    ]
    return {
        "milliseconds": quartiles([1e3 * more for more, _ in added]),
        "ratio": quartiles([more / step for more, step in added]),
    }
