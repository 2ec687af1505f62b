"""The progress of training: the schedule, the step count, the history and the costs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from sparseopt.flops.usage import CostCounters
from sparseopt.schedules import UpdateSchedule, make_schedule
from sparseopt.utils.validation import check_steps

__all__ = ["Progress", "UpdateRecord"]


@dataclass(frozen=True)
class UpdateRecord:
    """One mask update, over all layers together.

    Attributes:
        step: the number of the call of ``step()`` that was the update, counted from 1.
        fraction: the drop fraction in force, in [0, 1].
        dropped: live weights that were dropped.
        grown: weights that were grown; some may have been dropped in the same update.
        new: share of the live weights that were not live before the update, in [0, 1].
        explored: share of all weights that were ever live, in [0, 1] (the exploration rate
            :math:`R_s` of Liu et al. 2021, "Do We Actually Need Dense Over-Parameterization?").
        density: live weights over all weights after the update.
        skipped: whether nothing moved: because a gradient was not finite, or was masked in
            ``backward()`` because ``set_horizon()`` or ``load_state_dict()`` came later, or, under
            ``rigl-struct``, because the model made no training pass before the update.

    Example:
        >>> import torch
        >>> from sparseopt import SparseOptimizer
        >>> model = torch.nn.Linear(32, 16)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> optimizer = SparseOptimizer(
        ...     sgd, model, method="rigl", density=0.25, total_steps=100, delta_t=10)
        >>> for _ in range(10):
        ...     optimizer.zero_grad()
        ...     model(torch.randn(8, 32)).square().mean().backward()
        ...     optimizer.step()
        >>> record = optimizer.history[-1]
        >>> record.step, record.dropped, record.grown, record.density, record.skipped
        (10, 36, 36, 0.25, False)
    """

    step: int
    fraction: float
    dropped: int
    grown: int
    new: float
    explored: float
    density: float
    skipped: bool = False


@dataclass
class Progress:
    """The state of the wrapper, except the masks.

    Attributes:
        schedule: when masks move.
        total_steps: the horizon, if known.
        generator: the random source of masks and growth, on the CPU.
        steps: number of calls of ``step()``.
        history: one record an update.
        usage: the counters from which the measured cost is computed.
    """

    schedule: UpdateSchedule
    total_steps: int | None
    generator: torch.Generator
    steps: int = 0
    history: list[UpdateRecord] = field(default_factory=list)
    usage: CostCounters = field(default_factory=CostCounters)

    def set_horizon(self, total_steps: int) -> None:
        """Set the total number of steps; updates stop at three quarters of it."""
        total_steps = check_steps("total_steps", total_steps, minimum=1)
        self.schedule = make_schedule(
            total_steps=total_steps,
            t_end=None,
            delta_t=self.schedule.delta_t,
            alpha=self.schedule.alpha,
            decay=self.schedule.decay,
        )
        self.total_steps = total_steps

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain values and one CPU tensor, for a checkpoint."""
        return {
            "schedule": asdict(self.schedule),
            "total_steps": self.total_steps,
            "generator": self.generator.get_state(),
            "steps": self.steps,
            "history": tuple(asdict(record) for record in self.history),
            "usage": self.usage.as_dict(),
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> Progress:
        """Return what :meth:`as_dict` was called on.

        Raises:
            LookupError, RuntimeError, TypeError, ValueError: if a value is missing or wrong.
        """
        generator = torch.Generator()
        generator.set_state(saved["generator"].cpu())
        return cls(
            UpdateSchedule(**saved["schedule"]),
            saved["total_steps"],
            generator,
            saved["steps"],
            [UpdateRecord(**record) for record in saved["history"]],
            CostCounters.from_dict(saved["usage"]),
        )

    def renamed(self, names: Mapping[str, str]) -> Progress:
        """Return it with the new names of layers, by their earlier names."""
        return replace(self, usage=self.usage.renamed(names))

    def restore(self, saved: Progress) -> None:
        """Load the progress of a checkpoint; its schedule replaces this one."""
        self.schedule = saved.schedule
        self.total_steps = saved.total_steps
        self.generator.set_state(saved.generator.get_state())
        self.steps = saved.steps
        self.history = list(saved.history)
        self.usage = saved.usage

    def warn_of_another_schedule(self, saved: Progress) -> None:
        """Warn if the schedule given at construction is not the schedule in ``saved``."""
        given_horizon = self.schedule.t_end is not None
        is_another = given_horizon and saved.schedule != self.schedule
        both_horizons = self.total_steps is not None and saved.total_steps is not None
        is_another |= both_horizons and saved.total_steps != self.total_steps
        if is_another or saved._cadence() != self._cadence():
            warnings.warn(
                f"the checkpoint's schedule is used: {saved.schedule}, "
                f"total_steps={saved.total_steps}. The schedule given at construction is not: "
                f"{self.schedule}, total_steps={self.total_steps}.",
                UserWarning,
                stacklevel=4,
            )

    def _cadence(self) -> tuple[int, float, str]:
        return self.schedule.delta_t, self.schedule.alpha, self.schedule.decay
