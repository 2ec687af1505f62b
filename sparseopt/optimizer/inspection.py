"""What there is to see of a sparse optimizer: masks, densities, history, and what it costs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sparseopt.flops import Accountant, FlopsReport
from sparseopt.masks.layer import SparseLayer
from sparseopt.methods import Method
from sparseopt.optimizer.mask_updates import MaskUpdater
from sparseopt.optimizer.progress import Progress, UpdateRecord, summary_table
from sparseopt.optimizer.state import StateBackend
from sparseopt.optimizer.wrapper import WrappedOptimizer
from sparseopt.utils.compile import disable_dynamo

__all__ = ["InspectableOptimizer"]


class InspectableOptimizer(WrappedOptimizer):
    """An optimizer that can be looked into; nothing here changes anything.

    Attributes:
        method: what decides which weights drop and grow.
    """

    method: Method
    _layers: list[SparseLayer]
    _progress: Progress
    _updater: MaskUpdater
    _accountant: Accountant
    _store: StateBackend

    @property
    def layers(self) -> list[SparseLayer]:
        """All layers that can be sparse, in the model's order; fully dense ones included."""
        return list(self._layers)

    @property
    def masks(self) -> dict[str, Tensor]:
        """Bool masks of the weights' shapes by layer name, true where live, as they are now."""
        return {layer.name: layer.mask for layer in self._layers}

    @property
    def density(self) -> float:
        """Live weights over all weights of the layers."""
        live = sum(layer.live for layer in self._layers)
        return live / sum(layer.numel for layer in self._layers)

    @property
    def history(self) -> list[UpdateRecord]:
        """One record for each update so far."""
        return list(self._progress.history)

    @property
    def steps(self) -> int:
        """Calls of :meth:`step` so far, update steps included."""
        return self._progress.steps

    @property
    @disable_dynamo
    def is_update_step(self) -> bool:
        """Whether the next call of :meth:`step` moves the masks."""
        return self._updater.is_due()

    def summary(self) -> str:
        """Return a table by layer: shape, density, live weights, and what the last update moved."""
        return summary_table(self._layers)

    def flops(self, model: nn.Module | None = None, *inputs: Any) -> FlopsReport:
        """Return what inference and training cost, in FLOPs per sample.

        Args:
            model: the model to count; the one given at construction by default.
            inputs: its positional inputs, the batch first. By default the shapes of the first
                training input are replayed.

        Raises:
            ValueError: if there is no model, or no input is known.
        """
        self._store.bring_back()
        return self._accountant.report(
            model, inputs, layers=self._layers, method=self.method, progress=self._progress
        )

    def __repr__(self) -> str:
        return (
            f"SparseOptimizer(method={self.method!r}, density={self.density:.4g}, "
            f"layers={len(self._layers)}, steps={self.steps}, inner={self.inner!r})"
        )
