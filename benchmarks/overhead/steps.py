"""The optimizer alone: its step, the masking around it, and the mask update."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.rounds import Rounds, Sample, measure_rounds
from benchmarks.overhead.case import Case
from benchmarks.overhead.contenders import PLAIN, REFERENCE, Contender, sparse_layers
from benchmarks.overhead.memory import resident_bytes
from sparseopt.speedup.timing import seconds

#: As small as gradients are, and large enough to keep optimizers out of denormal numbers.
GRADIENT_SCALE = 1e-3
GRADIENT_SETS = 1024
#: A whole number of cache lines, so that all gradients are aligned alike.
SHIFT = 64
#: Samples that an update sees where it computes the dense gradient itself.
UPDATE_SAMPLES = 128


class StepTimer:
    """Steps contenders with made-up gradients, and times the steps.

    A sample has two phases. ``masking`` is everything between the parameters and their gradients:
    the weights that a forward pass reads, the accumulation of gradients, and hooks. The other phase
    is ``step`` or, if masks moved, ``update``. ``parameters`` counts the plain model.

    Gradients are fixed random numbers, different at each step, so that masks keep moving. They are
    windows into one tensor, so a thousand sets take hardly more memory than the largest gradient.
    """

    def __init__(self, parameters: Mapping[str, Tensor], device: torch.device) -> None:
        self._names = list(parameters)
        self._device = device
        #: How many steps each contender has made.
        self.steps: Counter[Contender] = Counter()
        largest = max(map(Tensor.numel, parameters.values()))
        generator = torch.Generator().manual_seed(0)
        numbers = torch.randn(largest + GRADIENT_SETS * SHIFT, generator=generator)
        self._numbers = (GRADIENT_SCALE * numbers).to(device)

    def gradients(self, step: int, weights: Sequence[Tensor]) -> list[Tensor]:
        """Return one gradient for each of ``weights``."""
        numbers = self._numbers[step % GRADIENT_SETS * SHIFT :]
        return [numbers[: weight.numel()].view(weight.shape) for weight in weights]

    def __call__(self, contender: Contender) -> Sample:
        """Step ``contender`` once."""
        phase = "update" if contender.updates_next else "step"
        if phase == "update":
            contender.before_update(UPDATE_SAMPLES)
        self._clear_gradients(contender)
        masking = seconds(lambda: self._accumulate(contender), device=self._device)
        return {"masking": masking, phase: seconds(contender.step, device=self._device)}

    def prepare(self, contender: Contender) -> None:
        """Prepare a step, untimed."""
        self._clear_gradients(contender)
        self._accumulate(contender)

    @staticmethod
    def _clear_gradients(contender: Contender) -> None:
        # Gradients are accumulated into zeros, so that no allocation is timed.
        for parameter in contender.model.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.zero_()

    def _accumulate(self, contender: Contender) -> None:
        """Accumulate made-up gradients, with the hooks that a forward and a backward pass run."""
        weights = contender.weights(self._names)
        gradients = self.gradients(self.steps[contender], weights)
        self.steps[contender] += 1
        torch.autograd.backward(weights, gradients)


def measure(case: Case) -> dict[str, Any]:
    """Step every contender once a round; return medians and quartiles, density and bytes of each.

    ``step`` and ``update``: milliseconds, and ratio to the plain optimizer's step of the same
    round; ``update`` also as a ratio to the reference optimizer's step. ``masking``: the time
    beyond the plain optimizer's accumulation of gradients, in milliseconds and relative to the
    plain optimizer's step. None if a contender lacks the phase.
    """
    contenders, absent = case.line_up(case.contenders, case.update_every)
    model = case.build_model()
    parameters = dict(model.named_parameters())
    sizes = {name: layer.weight.numel() for name, layer in sparse_layers(model).items()}
    timer = StepTimer(parameters, case.device)
    # A full cycle warms up the first update too.
    measure_rounds(contenders, timer, case.update_every)
    masks = {name: contender.masks() for name, contender in contenders.items()}
    rounds = measure_rounds(contenders, timer, case.repeated(case.rounds))
    return {
        "parameters": sum(weight.numel() for weight in parameters.values()),
        "tensors": len(parameters),
        "sparse_weights": sum(sizes.values()),
        "absent": absent,
        "contenders": {
            name: {
                **_times(rounds, name),
                **_what_masks_did(masks[name], contender.masks(), sizes),
                "bytes": resident_bytes(contender),
            }
            for name, contender in contenders.items()
        },
    }


def _times(rounds: Rounds, name: str) -> dict[str, Any]:
    step, update, plain = rounds.of(name, "step"), rounds.of(name, "update"), (PLAIN, "step")
    reference = REFERENCE if REFERENCE in rounds.names else PLAIN
    # Only around ordinary steps: an update has its own masking.
    masking = (rounds.of(name, "masking") - rounds.of(PLAIN, "masking"))[step.notna()]
    to_reference = rounds.ratio(update, to=(reference, "step"))
    return {
        "step": rounds.summary(step, to=plain),
        "update": {**rounds.summary(update, to=plain), "ratio_to_reference": to_reference},
        "masking": rounds.summary(masking, to=plain),
    }


def _what_masks_did(
    before: dict[str, Tensor], masks: dict[str, Tensor], sizes: dict[str, int]
) -> dict[str, Any]:
    """Return the live share of the weights in ``sizes``, and the newly live share of live weights.

    All weights of a layer without a mask are live.
    """
    if not masks:
        return {"density": None, "moved": None}
    live = sum(int(masks[name].sum()) if name in masks else sizes[name] for name in sizes)
    moved = sum(int((masks[name] & ~before[name]).sum()) for name in sizes if name in masks)
    return {"density": live / sum(sizes.values()), "moved": moved / live}
