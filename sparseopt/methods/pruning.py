"""Gradual magnitude pruning: from dense to sparse along a cubic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

import torch

from sparseopt._validation import check_choice
from sparseopt.layers import SparseLayer
from sparseopt.methods.base import Method, Move, TrainingCost, Update
from sparseopt.methods.registry import register_method
from sparseopt.schedules import UPDATE_SHARE, CubicDensity, UpdateSchedule
from sparseopt.selection import smallest

__all__ = ["Pruning"]

#: Share of the training steps before the first pruning: 700 of 88,000 in the report.
START_SHARE: Final = 0.008


@register_method
@dataclass(frozen=True)
class Pruning(Method):
    r"""Gradual magnitude pruning.

    Training starts dense. Every ``delta_t`` steps from ``int(0.008 * total_steps)`` on, and for the
    last time at ``t_end``, the live weights of smallest magnitude are dropped until the density is

    .. math:: d(t) = 1 - s_f \left(1 - \left(1 - \frac{t - t_0}{T - t_0}\right)^3\right)

    which at ``t_end`` is exactly the target. The update takes the gradient step's place. ``init``
    sets the budget: its total is met by all layers together (``scope="global"``) or by each alone
    (``scope="layer"``), and layers that it makes dense stay dense.

    Training costs :math:`3\,E[f_{s,t}]` FLOPs a step, averaged over the steps.

    Args:
        scope: ``"global"`` compares magnitudes across layers, ``"layer"`` within each.

    Reference: Zhu & Gupta 2017, "To prune, or not to prune", section 3.
    """

    name: ClassVar[str] = "pruning"
    needs_horizon: ClassVar[bool] = True
    # A layer that happens to be unused at the last update would else keep all its weights for ever.
    needs_gradient: ClassVar[bool] = False

    scope: Literal["global", "layer"] = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("scope", self.scope, ("global", "layer"))

    def is_update(self, step: int, schedule: UpdateSchedule, total_steps: int | None) -> bool:
        """Whether ``step`` is on the cadence between start and end, or is the end."""
        cubic = self._cubic(schedule, total_steps)
        return step == cubic.end or (step >= cubic.start and schedule.is_update(step))

    def initial_live(self, layer_numel: int, target: int) -> int:
        """All of them."""
        return layer_numel

    def moves(self, layers: Sequence[SparseLayer], update: Update) -> list[Move]:
        """Drop down to the cubic's density; grow nothing."""
        cubic = self._cubic(update.schedule, update.total_steps)
        if self.scope == "layer":
            return [self._move_to(layer, self._live_at(cubic, update, [layer])) for layer in layers]
        excess = sum(layer.live for layer in layers) - self._live_at(cubic, update, layers)
        return [Move(drop, 0) for drop in _drops_by_layer(layers, max(0, excess))]

    def train_flops(self, cost: TrainingCost) -> float:
        """Return three times the average inference cost so far."""
        return 3.0 * cost.mean_sparse

    @staticmethod
    def _cubic(schedule: UpdateSchedule, total_steps: int | None) -> CubicDensity:
        end = schedule.t_end
        if end is None:
            raise ValueError(
                "method='pruning' needs a horizon: pass total_steps= or t_end=, or call "
                "set_horizon(steps) before the first step()."
            )
        steps = end / UPDATE_SHARE if total_steps is None else total_steps
        return CubicDensity(start=min(int(START_SHARE * steps), end), end=end)

    @staticmethod
    def _live_at(cubic: CubicDensity, update: Update, layers: Sequence[SparseLayer]) -> int:
        numel = sum(layer.numel for layer in layers)
        target = sum(layer.target for layer in layers)
        if update.step >= cubic.end:
            return target
        return max(target, round(cubic.density(update.step, final=target / numel) * numel))

    @staticmethod
    def _move_to(layer: SparseLayer, live: int) -> Move:
        return Move(max(0, layer.live - live), 0)


def _drops_by_layer(layers: Sequence[SparseLayer], excess: int) -> list[int]:
    """Split ``excess`` drops by global magnitude; ties go to the earlier layer, then position.

    Every layer keeps its largest weight, so none is emptied.
    """
    device = layers[0].weight.device
    scores = []
    for layer in layers:
        magnitude = layer.gather(layer.weight).abs().to(device=device, dtype=torch.float32)
        magnitude[magnitude.argmax()] = torch.inf
        scores.append(magnitude)
    out = smallest(torch.cat(scores), excess)
    parts = torch.split(out, [layer.live for layer in layers])
    counts = torch.stack([part.sum() for part in parts])
    return [int(count) for count in counts.tolist()]
