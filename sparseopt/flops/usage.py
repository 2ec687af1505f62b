"""How many live weights training has used so far: what measured training cost is made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sparseopt.masks.layer import SparseLayer

__all__ = ["CostCounters"]


@dataclass(frozen=True)
class CostCounters:
    """Live weights summed over steps, by layer, and the number of steps with dense gradients.

    It is brought up to date only when masks are about to move, so ordinary steps cost nothing.

    Attributes:
        counted: steps that are in the sums.
        live_steps: for each layer, by name, its live weights summed over those steps.
        dense_gradients: steps among them whose gradients were dense.
        live_dense_steps: as ``live_steps``, over the steps whose gradients were dense.
    """

    counted: int = 0
    live_steps: dict[str, int] = field(default_factory=dict)
    dense_gradients: int = 0
    live_dense_steps: dict[str, int] = field(default_factory=dict)

    def advanced(
        self, step: int, layers: Sequence[SparseLayer], dense_gradients: int = 0
    ) -> CostCounters:
        """Return the sums up to ``step``, the masks since the last count being what they are now.

        Args:
            step: the last step to count.
            layers: the layers, their masks as they were in those steps.
            dense_gradients: steps among those with dense gradients.
        """
        return CostCounters(
            step,
            _added(self.live_steps, layers, step - self.counted),
            self.dense_gradients + dense_gradients,
            _added(self.live_dense_steps, layers, dense_gradients),
        )

    def with_dense_gradient(self, layers: Sequence[SparseLayer]) -> CostCounters:
        """Return the same with one more step whose gradients were dense."""
        return replace(
            self,
            dense_gradients=self.dense_gradients + 1,
            live_dense_steps=_added(self.live_dense_steps, layers, 1),
        )

    def joined_by(self, layers: Sequence[SparseLayer]) -> CostCounters:
        """Return the same with more layers, which were dense in all those steps."""

        def joined(sums: Mapping[str, int], steps: int) -> dict[str, int]:
            return {**sums, **{layer.name: steps * layer.numel for layer in layers}}

        return replace(
            self,
            live_steps=joined(self.live_steps, self.counted),
            live_dense_steps=joined(self.live_dense_steps, self.dense_gradients),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values under keys that are always the same, for a checkpoint."""
        return {
            "counted": self.counted,
            "live_steps": tuple(self.live_steps.items()),
            "dense_gradients": self.dense_gradients,
            "live_dense_steps": tuple(self.live_dense_steps.items()),
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> CostCounters:
        """Undo :meth:`as_dict`."""
        sums = {name: dict(saved[name]) for name in ("live_steps", "live_dense_steps")}
        return cls(**{**saved, **sums})


def _added(sums: Mapping[str, int], layers: Sequence[SparseLayer], steps: int) -> dict[str, int]:
    return {layer.name: sums.get(layer.name, 0) + steps * layer.live for layer in layers}
