"""The optimizer alone: its step, the masking around it, and the mask update."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.overhead.contenders import PLAIN, REFERENCE, Contender
from benchmarks.overhead.timing import (
    Round,
    Sample,
    beyond,
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
#: Samples that an update sees where it computes the dense gradient itself.
UPDATE_SAMPLES = 128


class Gradients:
    """Fixed random gradients, other ones each round, so that masks keep moving.

    They are windows into one tensor of random numbers, so a thousand sets take hardly more memory
    than the largest gradient.

    Args:
        largest: Numbers in the largest gradient.
        device: Where they are.
    """

    def __init__(self, largest: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        numbers = torch.randn(largest + GRADIENT_SETS * SHIFT, generator=generator)
        self._numbers = (GRADIENT_SCALE * numbers).to(device)

    def of_round(self, index: int, weights: Sequence[Tensor]) -> list[Tensor]:
        """Return one gradient for each of ``weights``."""
        numbers = self._numbers[index % GRADIENT_SETS * SHIFT :]
        return [numbers[: weight.numel()].view(weight.shape) for weight in weights]


class StepTimer:
    """Steps contenders with made-up gradients; its samples are for :func:`run_rounds`.

    The phases of a sample are ``masking``, everything between the parameters and their gradients:
    weights as a forward pass sees them, the accumulation of gradients and its hooks; and then
    either ``step`` or, where masks moved, ``update``.

    Args:
        names: The parameters of the plain model.
        largest: Numbers in the largest of them.
        update_every: Steps between updates.
        device: Where everything is.
    """

    def __init__(
        self, names: Sequence[str], largest: int, update_every: int, device: torch.device
    ) -> None:
        self._names = names
        self._gradients = Gradients(largest, device)
        self._update_every = update_every
        self._device = device
        self._updates: Counter[Contender] = Counter()

    def __call__(self, contender: Contender, index: int) -> Sample | None:
        """Step ``contender`` once."""
        if contender.always_updates and (index + 1) % self._update_every:
            return None
        phase = "update" if contender.updates_next else "step"
        if phase == "update" and self._has_enough(contender):
            contender.skip()
            return None
        if phase == "update":
            contender.before_update(UPDATE_SAMPLES)
        self._clear_gradients(contender)
        masking = seconds(lambda: self.accumulate(contender, index), self._device)
        return {"masking": masking, phase: seconds(contender.step, self._device)}

    def give_gradients(self, contender: Contender, index: int) -> None:
        """Do all that comes before a step, untimed."""
        self._clear_gradients(contender)
        self.accumulate(contender, index)

    def _clear_gradients(self, contender: Contender) -> None:
        # Gradients are accumulated into zeros, so that no allocation is timed.
        for parameter in contender.model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.zero_()

    def _has_enough(self, contender: Contender) -> bool:
        self._updates[contender] += 1
        return contender.most_updates is not None and (
            self._updates[contender] > contender.most_updates
        )

    def accumulate(self, contender: Contender, index: int) -> None:
        """Do what a forward and a backward pass do to parameters, and nothing else of them."""
        weights = contender.weights(self._names)
        torch.autograd.backward(weights, self._gradients.of_round(index, weights))


def measure_steps(
    contenders: dict[str, Contender],
    timer: StepTimer,
    *,
    rounds: range,
    on_round: Callable[[], Any],
) -> dict[str, dict[str, Any]]:
    """Step every contender once a round; return medians and quartiles by contender.

    ``step`` and ``update``: milliseconds, and ratio to the plain optimizer's step of the same
    round; ``update`` also as a ratio to the reference optimizer's step. ``masking``: what it takes
    beyond the plain optimizer's accumulation of gradients, in milliseconds and relative to the
    plain optimizer's step. None where a contender has no such phase.
    """
    measured = run_rounds(contenders, timer, rounds=rounds, on_round=on_round)
    return {name: _summarise(measured, name) for name in contenders}


def _summarise(rounds: Sequence[Round], name: str) -> dict[str, Any]:
    reference = REFERENCE if REFERENCE in rounds[0] else PLAIN
    added = [
        1e3 * (samples[name]["masking"] - samples[PLAIN]["masking"])
        for samples in rounds
        if "step" in samples.get(name, {})
    ]
    ordinary = [samples for samples in rounds if "step" in samples.get(name, {})]
    return {
        "step": {
            "milliseconds": milliseconds(rounds, name, "step"),
            "ratio": ratios(rounds, name, "step", to=(PLAIN, "step")),
        },
        "update": {
            "milliseconds": milliseconds(rounds, name, "update"),
            "ratio": ratios(rounds, name, "update", to=(PLAIN, "step")),
            "ratio_to_reference": ratios(rounds, name, "update", to=(reference, "step")),
        },
        "masking": {
            "milliseconds": quartiles(added),
            "ratio": beyond(ordinary, name, "masking", base=PLAIN, per=(PLAIN, "step")),
        },
    }
