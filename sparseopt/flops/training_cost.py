"""The cost of training: of the steps so far, and of the steps left until the horizon."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from sparseopt.flops.usage import CostCounters
from sparseopt.masks.layer import SparseLayer
from sparseopt.methods.base import Method
from sparseopt.schedules import UpdateSchedule

__all__ = ["PlansDensity", "Prices", "TrainingProgress", "cost_ahead"]


class TrainingProgress(Protocol):
    """The progress of training: the attributes of the optimizer that the accountant reads.

    Attributes:
        schedule: when masks move.
        total_steps: the horizon, if known.
        steps: steps so far.
        usage: live weights summed over the steps so far.
    """

    schedule: UpdateSchedule
    total_steps: int | None
    steps: int
    usage: CostCounters


@runtime_checkable
class PlansDensity(Protocol):
    """A method that plans its density ahead, for example along a cubic."""

    def planned_density(
        self, step: int, *, final: float, schedule: UpdateSchedule, total_steps: int | None
    ) -> float:
        """Return the density after ``step``, on the way to ``final``."""
        ...


@dataclass(frozen=True)
class Prices:
    """The cost of inference, in FLOPs per sample, as a function of live counts.

    Attributes:
        dense: the cost with every weight live, :math:`f_d`.
        fixed: the part of the cost that no mask changes.
        per_live: the cost of one live weight, by layer name.
    """

    dense: float
    fixed: float
    per_live: Mapping[str, float]

    def inference(self, live: Mapping[str, float], steps: float = 1) -> float:
        """Return the cost of one inference at each step, summed over ``steps`` steps.

        Args:
            live: live weights by layer, summed over the same steps.
            steps: how many steps.
        """
        masked = sum(price * live.get(name, 0) for name, price in self.per_live.items())
        return steps * self.fixed + masked

    def training(self, usage: CostCounters) -> float:
        """Return the cost of the steps in ``usage``, summed.

        A step is one forward pass and two backward passes. Where gradients were dense, the backward
        pass to the weights was dense.
        """
        sparse = self.inference(usage.live_steps, usage.counted)
        sparse_there = self.inference(usage.live_dense_steps, usage.dense_gradients)
        return 3.0 * sparse + usage.dense_gradients * self.dense - sparse_there


def cost_ahead(
    prices: Prices, layers: Mapping[str, SparseLayer], method: Method, progress: TrainingProgress
) -> float | None:
    """Return the cost of the steps from now to the horizon, summed.

    Special steps are mask updates and steps with dense gradients. Between them the cost of a step
    is constant, so the sum goes from one special step to the next. It is exact if live counts stay
    the same. If the method plans the density, all layers approach their targets in proportion.

    Args:
        prices: the cost of inference.
        layers: all layers, by name.
        method: the optimizer's method.
        progress: the progress of training.

    Returns:
        FLOPs per sample; ``None`` without a horizon, or if an update ahead may change live counts
        and the method does not plan how.
    """
    total = progress.total_steps
    if total is None:
        return None
    cost, last = 0.0, min(progress.steps, total)
    inference = prices.inference(_live_at(last, layers, method, progress))
    foreseeable = _can_foresee(layers, method)
    for step in _special_steps_ahead(layers, method, progress, total):
        cost += 3.0 * inference * (step - last)
        if method.reads_dense_gradient(step, progress.schedule, total):
            cost += method.dense_passes * (prices.dense - inference)
        if method.is_update(step, progress.schedule, total):
            if not foreseeable:
                return None
            inference = prices.inference(_live_at(step, layers, method, progress))
        last = step
    return cost + 3.0 * inference * (total - last)


def _can_foresee(layers: Mapping[str, SparseLayer], method: Method) -> bool:
    """Whether the live counts after the updates ahead are known."""
    if isinstance(method, PlansDensity):
        return True
    at_target = all(layer.live == layer.target for layer in layers.values())
    return method.keeps_live_counts and at_target


def _special_steps_ahead(
    layers: Mapping[str, SparseLayer], method: Method, progress: TrainingProgress, total: int
) -> Iterator[int]:
    """Yield the steps left until the horizon that move masks or read dense gradients."""
    if not method.moves_masks or all(layer.is_dense for layer in layers.values()):
        return
    for step in range(progress.steps + 1, total + 1):
        if method.is_update(step, progress.schedule, total) or method.reads_dense_gradient(
            step, progress.schedule, total
        ):
            yield step


def _live_at(
    step: int, layers: Mapping[str, SparseLayer], method: Method, progress: TrainingProgress
) -> dict[str, float]:
    """Return live counts after ``step``, by layer.

    Each layer's excess over its target shrinks by the same share, so that all layers together have
    the density that the method plans.
    """
    now = {name: float(layer.live) for name, layer in layers.items()}
    moving = [layer for layer in layers.values() if not layer.is_dense]
    excess = sum(layer.live - layer.target for layer in moving)
    if step <= progress.steps or not excess or not isinstance(method, PlansDensity):
        return now
    numel = sum(layer.numel for layer in moving)
    final = sum(layer.target for layer in moving) / numel
    planned = method.planned_density(
        step, final=final, schedule=progress.schedule, total_steps=progress.total_steps
    )
    share = min(1.0, max(0.0, (planned - final) * numel / excess))
    return {
        name: layer.target + share * (layer.live - layer.target) for name, layer in layers.items()
    }
