"""GraNet (Liu et al., 2021): global pruning along a cubic, then regeneration layer by layer."""

from collections.abc import Mapping

import numpy as np

from tests.oracle.methods import LayerUpdate
from tests.oracle.pruning import PruningOracle
from tests.oracle.schedules import cosine_fraction
from tests.oracle.selection import among


class GraNetOracle(PruningOracle):
    """Two stages one after the other, each with its masks.

    Args:
        masks: The masks at the start, at the density `initial`.
        targets: Final live count of every layer.
    """

    def __init__(
        self,
        masks: Mapping[str, np.ndarray],
        targets: Mapping[str, int],
        *,
        initial: float,
        delta_t: int,
        t_end: int,
        alpha: float,
    ):
        numels = {name: len(mask) for name, mask in masks.items()}
        super().__init__(numels, targets, delta_t=delta_t, t_start=0, t_end=t_end)
        self.masks = dict(masks)
        self.initial, self.alpha = initial, alpha

    def density_at(self, t: int, final_sparsity: float) -> float:
        """s_f + (s_i - s_f) (1 - t / T)^3, as a density."""
        sparsity = (
            final_sparsity + ((1 - self.initial) - final_sparsity) * (1 - t / self.t_end) ** 3
        )
        return 1 - sparsity

    def update(
        self,
        t: int,
        weights: Mapping[str, np.ndarray],
        gradients: Mapping[str, np.ndarray | None],
    ) -> dict[str, LayerUpdate]:
        before = {name: self.masks[name].copy() for name in self.prunable}
        pruned = super().update(t, weights, gradients)
        updates = {}
        for name, first in pruned.items():
            mask = first.mask
            # A layer whose gradient is zero everywhere grows nothing: all candidates would tie.
            share = cosine_fraction(self.alpha, t, self.t_end) if gradients[name].any() else 0.0
            k = int(share * int(mask.sum()))
            survivors = mask & ~among(mask, np.abs(weights[name]), k, smallest_first=True)
            regenerated = among(~survivors, np.abs(gradients[name]), k, smallest_first=False)
            self.masks[name] = survivors | regenerated
            stayed = before[name] & self.masks[name]
            updates[name] = LayerUpdate(self.masks[name], ~stayed, first.dropped + k, k)
        return updates
