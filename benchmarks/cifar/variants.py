"""Variants of the library's methods, which studies compare with the methods themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from sparseopt import Accumulated, GradientMemory, RigL, register_method

TEN_BATCHES: Final = Accumulated(10)


@register_method
@dataclass(frozen=True)
class RigLOfTenBatches(RigL):
    """RigL that grows by the sum of the gradients of the last ten steps, not by one batch's."""

    name: ClassVar[str] = "rigl-10-batches"

    gradient: GradientMemory | None = TEN_BATCHES
