"""How many live weights training has used so far: what measured training cost is made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sparseopt.layers import SparseLayer

__all__ = ["Usage"]


@dataclass(frozen=True)
class Usage:
    """Live weights summed over steps, by layer, and the number of update steps.

    It is brought up to date only when masks are about to move, so ordinary steps cost nothing.

    Attributes:
        counted: steps that are in the sums.
        live_steps: for each layer, by name, its live weights summed over those steps.
        dense_gradients: steps among them whose gradients were dense.
    """

    counted: int = 0
    live_steps: dict[str, int] = field(default_factory=dict)
    dense_gradients: int = 0

    def advanced(self, step: int, layers: Sequence[SparseLayer], dense_gradients: int = 0) -> Usage:
        """Return the sums up to ``step``, the masks since the last count being what they are now.

        Args:
            step: the last step to count.
            layers: the layers, their masks as they were in those steps.
            dense_gradients: steps among those with dense gradients.
        """
        steps = step - self.counted
        live_steps = {
            layer.name: self.live_steps.get(layer.name, 0) + steps * layer.live for layer in layers
        }
        return Usage(step, live_steps, self.dense_gradients + dense_gradients)

    def with_dense_gradient(self) -> Usage:
        """Return the same with one more step whose gradients were dense."""
        return replace(self, dense_gradients=self.dense_gradients + 1)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values under keys that are always the same, for a checkpoint."""
        return {
            "counted": self.counted,
            "live_steps": tuple(self.live_steps.items()),
            "dense_gradients": self.dense_gradients,
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Usage:
        """Undo :meth:`as_dict`."""
        return cls(**{**saved, "live_steps": dict(saved["live_steps"])})
