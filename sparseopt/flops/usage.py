"""Live weights summed over the steps so far, from which the measured training cost is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sparseopt.masks.layer import SparseLayer

__all__ = ["CostCounters"]


@dataclass(frozen=True)
class CostCounters:
    """Live weights summed over steps, by layer, and the number of steps with dense gradients.

    The counters advance only when masks are about to move, so ordinary steps cost nothing.

    Attributes:
        counted: steps that are in the sums.
        live_steps: live weights summed over these steps, by layer name.
        dense_gradients: how many of these steps had dense gradients.
        live_dense_steps: live weights summed over the steps with dense gradients, by layer name.
    """

    counted: int = 0
    live_steps: dict[str, int] = field(default_factory=dict)
    dense_gradients: int = 0
    live_dense_steps: dict[str, int] = field(default_factory=dict)

    def advanced(
        self, step: int, layers: Sequence[SparseLayer], dense_gradients: int = 0
    ) -> CostCounters:
        """Return the sums up to ``step``. The masks must not have moved since the last count.

        Args:
            step: the last step to count.
            layers: the layers, with the masks of the steps to count.
            dense_gradients: how many of these steps had dense gradients.
        """
        return CostCounters(
            step,
            _added(self.live_steps, layers, step - self.counted),
            self.dense_gradients + dense_gradients,
            _added(self.live_dense_steps, layers, dense_gradients),
        )

    def with_dense_gradient(self, layers: Sequence[SparseLayer]) -> CostCounters:
        """Return the counters with one more step that had dense gradients."""
        return replace(
            self,
            dense_gradients=self.dense_gradients + 1,
            live_dense_steps=_added(self.live_dense_steps, layers, 1),
        )

    def joined_by(self, layers: Sequence[SparseLayer]) -> CostCounters:
        """Return the counters with more layers, which were dense in all counted steps."""

        def joined(sums: Mapping[str, int], steps: int) -> dict[str, int]:
            return {**sums, **{layer.name: steps * layer.numel for layer in layers}}

        return replace(
            self,
            live_steps=joined(self.live_steps, self.counted),
            live_dense_steps=joined(self.live_dense_steps, self.dense_gradients),
        )

    def renamed(self, names: Mapping[str, str]) -> CostCounters:
        """Return the counters with the new names of layers, by their earlier names."""

        def with_new_names(sums: Mapping[str, int]) -> dict[str, int]:
            return {names.get(name, name): count for name, count in sums.items()}

        return replace(
            self,
            live_steps=with_new_names(self.live_steps),
            live_dense_steps=with_new_names(self.live_dense_steps),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return {
            "counted": self.counted,
            "live_steps": tuple(self.live_steps.items()),
            "dense_gradients": self.dense_gradients,
            "live_dense_steps": tuple(self.live_dense_steps.items()),
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> CostCounters:
        """Undo :meth:`as_dict`."""
        sums = {name: dict(saved.get(name, ())) for name in ("live_steps", "live_dense_steps")}
        return cls(**{**saved, **sums})


def _added(sums: Mapping[str, int], layers: Sequence[SparseLayer], steps: int) -> dict[str, int]:
    return {layer.name: sums.get(layer.name, 0) + steps * layer.live for layer in layers}
