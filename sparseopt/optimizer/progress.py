"""How far training is, and everything a resumed run has to know about it."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from sparseopt.flops.usage import Usage
from sparseopt.optimizer.history import UpdateRecord
from sparseopt.schedules import UPDATE_SHARE, Decay, UpdateSchedule
from sparseopt.utils.validation import check_steps

__all__ = ["Progress", "make_schedule"]


def make_schedule(
    *,
    total_steps: int | None,
    t_end: int | None,
    delta_t: int,
    alpha: float,
    decay: Decay,
) -> UpdateSchedule:
    """Return the schedule; without ``t_end`` updates stop at three quarters of ``total_steps``.

    Raises:
        TypeError: if a number has the wrong type.
        ValueError: if a number is out of range, or ``t_end`` lies after ``total_steps``.
    """
    if total_steps is not None:
        check_steps("total_steps", total_steps, minimum=1)
        if t_end is None:
            t_end = int(UPDATE_SHARE * total_steps)
        elif t_end > total_steps:
            raise ValueError(f"t_end={t_end} must not exceed total_steps={total_steps}.")
    return UpdateSchedule(delta_t=delta_t, alpha=alpha, t_end=t_end, decay=decay)


@dataclass
class Progress:
    """The state of the wrapper that is not masks.

    Attributes:
        schedule: when masks move.
        total_steps: the horizon, if known.
        generator: the random source of masks and growth, on the CPU.
        steps: counted calls of ``step()``.
        history: one record an update.
        usage: what measured cost is made from.
    """

    schedule: UpdateSchedule
    total_steps: int | None
    generator: torch.Generator
    steps: int = 0
    history: list[UpdateRecord] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)

    def set_horizon(self, total_steps: int) -> None:
        """Say how many steps there will be; updates stop at three quarters of them."""
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

    def restore(self, saved: dict[str, Any]) -> None:
        """Take over what :meth:`as_dict` returned; its schedule wins over this one."""
        schedule = UpdateSchedule(**saved["schedule"])
        given_horizon = self.schedule.t_end is not None
        if (given_horizon and schedule != self.schedule) or self._cadence() != _cadence(schedule):
            warnings.warn(
                f"the checkpoint's schedule is used: {schedule}. The one given at construction is "
                f"not: {self.schedule}.",
                UserWarning,
                stacklevel=4,
            )
        self.schedule = schedule
        self.total_steps = saved["total_steps"]
        self.generator.set_state(saved["generator"].cpu())
        self.steps = saved["steps"]
        self.history = [UpdateRecord(**record) for record in saved["history"]]
        self.usage = Usage.from_dict(saved["usage"])

    def _cadence(self) -> tuple[int, float, str]:
        return _cadence(self.schedule)


def _cadence(schedule: UpdateSchedule) -> tuple[int, float, str]:
    return schedule.delta_t, schedule.alpha, schedule.decay
