"""Structured RigL: constant fan-in and neuron ablation, neuron by neuron in plain loops."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from tests.oracle.masks import uniform_scores
from tests.oracle.methods import LayerUpdate, RigLOracle
from tests.oracle.schedules import cosine_fraction
from tests.oracle.selection import among, largest


def constant_fan_in(shape: tuple[int, ...], count: int) -> int:
    """The fan-in that a budget of `count` comes closest to, halves rounded up."""
    fan_in = math.floor(count / shape[0] + 0.5)
    return min(max(fan_in, 1), math.prod(shape[1:]))


def masks_of_constant_fan_in(
    shapes: Sequence[tuple[int, ...]], fan_ins: Sequence[int], generator: torch.Generator
) -> list[np.ndarray]:
    """The best of fresh random scores in every neuron; full layers draw nothing."""
    masks = []
    for shape, fan_in in zip(shapes, fan_ins, strict=True):
        numel = math.prod(shape)
        if fan_in * shape[0] == numel:
            masks.append(np.ones(numel, dtype=bool))
            continue
        scores = uniform_scores(generator, numel).reshape(shape[0], -1)
        masks.append(np.concatenate([largest(row, fan_in) for row in scores]))
    return masks


class SRigLOracle(RigLOracle):
    """RigL decides which neurons are active; all active neurons get the same fan-in.

    Args:
        masks: Live weights at the start; they set the budget of each layer.
        shapes: The weights' shapes; dimension 0 counts neurons.
        gamma: Share of the initial fan-in that has to be salient; None for no ablation.
        schedule: As for RigL.
    """

    def __init__(
        self,
        masks: Mapping[str, np.ndarray],
        shapes: Mapping[str, tuple[int, ...]],
        gamma: float | None,
        **schedule: object,
    ):
        super().__init__(masks, **schedule)
        self.shapes, self.gamma = shapes, gamma
        self.budgets = {name: int(mask.sum()) for name, mask in masks.items()}
        self.dense = {name for name, mask in masks.items() if mask.all()}
        self.last = list(masks)[-1]

    def is_update(self, t: int) -> bool:
        return len(self.dense) < len(self.masks) and t % self.delta_t == 0 and t < self.t_end

    def update(
        self,
        t: int,
        weights: Mapping[str, np.ndarray],
        gradients: Mapping[str, np.ndarray | None],
    ) -> dict[str, LayerUpdate]:
        updates = {}
        for name, mask in self.masks.items():
            drop = int(cosine_fraction(self.alpha, t, self.t_end) * int(mask.sum()))
            if name in self.dense or drop == 0:
                continue
            magnitude, growth = np.abs(weights[name]), np.abs(gradients[name])
            neurons = np.arange(mask.size) // (mask.size // self.shapes[name][0])
            active = self._active(name, mask, magnitude, growth, drop, neurons)
            fan_in = self.budgets[name] // len(active)
            survivors = self._survivors(mask, magnitude, drop, neurons, active, fan_in)
            new = survivors.copy()
            for neuron in active:
                own = neurons == neuron
                missing = fan_in - int(survivors[own].sum())
                new |= among(own & ~survivors, growth, missing, smallest_first=False)
            stayed = survivors if self.regrow == "zero" else mask & new
            kept = int(survivors.sum())
            updates[name] = LayerUpdate(new, ~stayed, int(mask.sum()) - kept, int(new.sum()) - kept)
            self.masks[name] = new
        return updates

    def _active(self, name, mask, magnitude, growth, drop, neurons) -> list[int]:
        count = self.shapes[name][0]
        if self.gamma is None or name == self.last:
            return [neuron for neuron in range(count) if mask[neurons == neuron].any()]
        stay = mask & ~among(mask, magnitude, drop, smallest_first=True)
        salient = stay | among(~stay, growth, drop, smallest_first=False)
        score = [int(salient[neurons == neuron].sum()) for neuron in range(count)]
        threshold = max(1, int(self.gamma * (self.budgets[name] // count)))
        room = math.ceil(self.budgets[name] / (mask.size // count))
        best = sorted(range(count), key=lambda neuron: (-score[neuron], neuron))
        enough = [neuron for neuron in best if score[neuron] >= threshold]
        return enough if len(enough) >= room else best[:room]

    @staticmethod
    def _survivors(mask, magnitude, drop, neurons, active, fan_in) -> np.ndarray:
        remaining = mask & np.isin(neurons, active)
        stay = min(int(mask.sum()) - drop, int(remaining.sum()))
        survivors = among(remaining, magnitude, stay, smallest_first=False)
        for neuron in active:
            own = survivors & (neurons == neuron)
            capped = among(own, magnitude, min(fan_in, int(own.sum())), smallest_first=False)
            survivors &= (neurons != neuron) | capped
        return survivors
