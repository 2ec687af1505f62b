"""When masks move, and what share of the live weights is dropped then.

All functions here depend on step numbers only. Calls of ``step()`` are counted from 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from sparseopt.utils.validation import check_choice, check_fraction, check_steps

__all__ = ["CubicDensity", "Decay", "UpdateSchedule", "make_schedule"]

Decay = Literal["cosine", "linear", "constant"]

DECAYS: Final = ("cosine", "linear", "constant")
#: Share of the training steps after which masks stop moving (Evci et al. 2020, section 4).
UPDATE_SHARE: Final = 0.75


@dataclass(frozen=True)
class UpdateSchedule:
    r"""The cadence of mask updates and the decay of the drop fraction.

    Step :math:`t` is an update step when :math:`t \bmod \Delta T = 0` and
    :math:`t < T_\mathrm{end}`. The drop fraction is

    .. math:: f(t) = \frac{\alpha}{2}\left(1 + \cos\frac{\pi t}{T_\mathrm{end}}\right)

    for ``decay="cosine"``, :math:`\alpha (1 - t / T_\mathrm{end})` for ``"linear"`` and
    :math:`\alpha` for ``"constant"`` (Evci et al. 2020, section 3, and Dettmers & Zettlemoyer
    2019). Without ``t_end`` the updates never stop, and the fraction stays at ``alpha``.

    Args:
        delta_t: steps between updates, at least 1.
        alpha: the drop fraction at step 0, in [0, 1].
        t_end: the step from which on masks no longer move, or ``None``.
        decay: ``"cosine"``, ``"linear"`` or ``"constant"``.

    Raises:
        TypeError: if a number has the wrong type.
        ValueError: if a number is out of range or ``decay`` is not known.

    Example:
        >>> schedule = UpdateSchedule(delta_t=100, alpha=0.3, t_end=1000)
        >>> schedule.is_update(500), schedule.is_update(550), schedule.is_update(1000)
        (True, False, False)
        >>> round(schedule.fraction(500), 3)
        0.15
    """

    delta_t: int = 100
    alpha: float = 0.3
    t_end: int | None = None
    decay: Decay = "cosine"

    def __post_init__(self) -> None:
        # The dataclass is frozen. torch.load would refuse a checkpoint with numbers of NumPy.
        object.__setattr__(self, "delta_t", check_steps("delta_t", self.delta_t, minimum=1))
        object.__setattr__(self, "alpha", check_fraction("alpha", self.alpha))
        check_choice("decay", self.decay, DECAYS)
        if self.t_end is not None:
            object.__setattr__(self, "t_end", check_steps("t_end", self.t_end, minimum=0))

    @property
    def has_updates(self) -> bool:
        """Whether any step is an update step."""
        return self.t_end is None or self.delta_t < self.t_end

    def is_update(self, step: int) -> bool:
        """Whether call number ``step`` of ``step()`` is an update step."""
        return step % self.delta_t == 0 and (self.t_end is None or step < self.t_end)

    def fraction(self, step: int) -> float:
        """Return the share of live weights to drop at ``step``, in [0, 1]."""
        if self.t_end is None or self.decay == "constant":
            return self.alpha
        progress = min(step / self.t_end, 1.0) if self.t_end else 1.0
        if self.decay == "linear":
            return self.alpha * (1.0 - progress)
        return self.alpha / 2.0 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class CubicDensity:
    r"""Density that falls to its final value along a cubic (Zhu & Gupta 2017, section 3).

    The share of dropped weights, :math:`s = 1 - d`, is

    .. math:: s(t) = s_i + (s_f - s_i) \left(1 - \left(1 - \frac{t - t_0}{T - t_0}\right)^3\right)

    from step :math:`t_0` to step :math:`T`, and from there on exactly :math:`s_f`.

    Args:
        start: the step :math:`t_0`.
        end: the step :math:`T`, at least ``start``.

    Example:
        >>> cubic = CubicDensity(start=100, end=900)
        >>> cubic.density(100, final=0.1), cubic.density(900, final=0.1)
        (1.0, 0.1)
    """

    start: int
    end: int

    def density(self, step: int, final: float, initial: float = 1.0) -> float:
        """Return the density at ``step``, between ``initial`` and ``final``."""
        if step >= self.end:
            return final
        if step <= self.start:
            return initial
        progress = (step - self.start) / (self.end - self.start)
        return initial - (initial - final) * (1.0 - (1.0 - progress) ** 3)


def make_schedule(
    *,
    total_steps: int | None,
    t_end: int | None,
    delta_t: int,
    alpha: float,
    decay: Decay,
) -> UpdateSchedule:
    """Return the schedule; without ``t_end`` updates stop at three quarters of ``total_steps``.

    The caller has checked ``total_steps``.

    Raises:
        TypeError: if a number has the wrong type.
        ValueError: if a number is out of range, or ``t_end`` lies after ``total_steps``.
    """
    if total_steps is not None:
        if t_end is None:
            t_end = int(UPDATE_SHARE * total_steps)
        elif t_end > total_steps:
            raise ValueError(f"t_end={t_end} must not exceed total_steps={total_steps}.")
    return UpdateSchedule(delta_t=delta_t, alpha=alpha, t_end=t_end, decay=decay)
