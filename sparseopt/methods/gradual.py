"""The base of methods whose density falls along a cubic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from sparseopt.masks.layer import SparseLayer
from sparseopt.masks.norm_slices import protected
from sparseopt.masks.topk import smallest
from sparseopt.methods.base import Method
from sparseopt.methods.update import Update
from sparseopt.schedules import UPDATE_SHARE, CubicDensity, UpdateSchedule

__all__ = ["Gradual", "split_by_magnitude"]


@dataclass(frozen=True)
class Gradual(Method):
    """Starts denser than the target, and reaches it exactly at ``t_end``, which is an update step.

    Example:
        >>> from sparseopt import Pruning, UpdateSchedule
        >>> schedule = UpdateSchedule(t_end=750)
        >>> def density(step):
        ...     return Pruning().planned_density(
        ...         step, final=0.1, schedule=schedule, total_steps=1000)
        >>> [round(density(step), 2) for step in (0, 100, 400, 750)]
        [1.0, 0.71, 0.19, 0.1]
    """

    needs_horizon: ClassVar[bool] = True
    reaches_target_at_t_end: ClassVar[bool] = True
    # Otherwise a layer that is unused at the last update would stay denser than its target.
    needs_gradient: ClassVar[bool] = False

    @property
    def start_share(self) -> float:
        """The share of the training steps before the first update."""
        return 0.0

    def is_update(self, step: int, schedule: UpdateSchedule, total_steps: int | None) -> bool:
        """Whether ``step`` is the end, or an update step of the schedule after the start."""
        cubic = self._cubic(schedule, total_steps)
        return step == cubic.end or (step >= cubic.start and schedule.is_update(step))

    def excess(
        self, layers: Sequence[SparseLayer], update: Update, *, initial: float | None = None
    ) -> int:
        """Return by how many live weights ``layers`` together exceed the cubic at this step.

        Args:
            layers: the layers.
            update: the update.
            initial: the density of ``layers`` at the start; by default the method's.
        """
        numel = sum(layer.numel for layer in layers)
        live = target = sum(layer.target for layer in layers)
        cubic = self._cubic(update.schedule, update.total_steps)
        if update.step < cubic.end:
            final = target / numel
            start = self.initial_density(final) if initial is None else max(initial, final)
            density = cubic.density(update.step, final, initial=start)
            live = max(target, round(density * numel))
        return max(0, sum(layer.live for layer in layers) - live)

    def planned_density(
        self, step: int, *, final: float, schedule: UpdateSchedule, total_steps: int | None
    ) -> float:
        """Return the cubic's density after ``step``, on the way to ``final``."""
        cubic = self._cubic(schedule, total_steps)
        return cubic.density(step, final, initial=self.initial_density(final))

    def _cubic(self, schedule: UpdateSchedule, total_steps: int | None) -> CubicDensity:
        end = schedule.t_end
        if end is None:
            raise ValueError(
                f"method={self.name!r} needs a horizon: pass total_steps= or t_end=, or call "
                "set_horizon(steps) before the first step()."
            )
        steps = end / UPDATE_SHARE if total_steps is None else total_steps
        return CubicDensity(start=min(int(self.start_share * steps), end), end=end)


def split_by_magnitude(layers: Sequence[SparseLayer], excess: int) -> list[int]:
    """Return how many of the ``excess`` smallest weights of all layers are in each layer.

    Ties go to the earlier layer, then to the lower position. Every layer keeps its largest weight,
    so no layer becomes empty; under weight norm every slice keeps its largest weight.
    """
    device = layers[0].weight.device
    scores = []
    for layer in layers:
        magnitude = layer.gather(layer.weight).abs().to(device=device, dtype=torch.float32)
        # Indexing by a 0-dimensional tensor would wait for the device.
        magnitude.scatter_(0, magnitude.argmax(keepdim=True), torch.inf)
        if (stays := protected(layer)) is not None:
            magnitude.masked_fill_(stays.to(device), torch.inf)
        scores.append(magnitude)
    out = smallest(torch.cat(scores), excess)
    parts = torch.split(out, [layer.live for layer in layers])
    counts = torch.stack([part.sum() for part in parts])
    return [int(count) for count in counts.tolist()]
