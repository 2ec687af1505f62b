"""Gradual magnitude pruning (Zhu & Gupta, 2017)."""

from collections.abc import Mapping

import numpy as np

from tests.oracle.methods import LayerUpdate
from tests.oracle.selection import among


class PruningOracle:
    """Starts full, drops the smallest |w| along a cubic density curve.

    Args:
        numels: Size of every layer, in order.
        targets: Final live count of every layer; a layer whose target is its size never moves.
        delta_t: Steps between updates.
        t_start: First step that may be an update.
        t_end: Last update, after which the counts are the targets exactly.
        scope: "global" (all layers compete) or "layer".
    """

    def __init__(
        self,
        numels: Mapping[str, int],
        targets: Mapping[str, int],
        *,
        delta_t: int,
        t_start: int,
        t_end: int,
        scope: str = "global",
    ):
        self.masks = {name: np.ones(numel, dtype=bool) for name, numel in numels.items()}
        self.targets = dict(targets)
        self.prunable = [name for name in numels if targets[name] < numels[name]]
        self.delta_t, self.t_start, self.t_end, self.scope = delta_t, t_start, t_end, scope

    def is_update(self, t: int) -> bool:
        on_the_way = t % self.delta_t == 0 and self.t_start <= t < self.t_end
        return bool(self.prunable) and (on_the_way or t == self.t_end)

    def observe(self, t: int, gradients: Mapping[str, np.ndarray | None]) -> None:
        """Gradients of ordinary steps are ignored."""

    def density_at(self, t: int, final_sparsity: float) -> float:
        progress = (t - self.t_start) / (self.t_end - self.t_start)
        return 1 - final_sparsity * (1 - (1 - progress) ** 3)

    def update(
        self,
        t: int,
        weights: Mapping[str, np.ndarray],
        gradients: Mapping[str, np.ndarray | None],
    ) -> dict[str, LayerUpdate]:
        if any(g is not None and not np.isfinite(g).all() for g in gradients.values()):
            return {}
        groups = [self.prunable] if self.scope == "global" else [[n] for n in self.prunable]
        updates = {}
        for names in groups:
            updates.update(self._prune_together(t, names, weights))
        for name, update in updates.items():
            self.masks[name] = update.mask
        return updates

    def _prune_together(
        self, t: int, names: list[str], weights: Mapping[str, np.ndarray]
    ) -> dict[str, LayerUpdate]:
        mask = np.concatenate([self.masks[name] for name in names])
        magnitude = np.abs(np.concatenate([weights[name] for name in names]))
        total = len(mask)
        final_sparsity = 1 - sum(self.targets[name] for name in names) / total
        keep = max(len(names), round(self.density_at(t, final_sparsity) * total))
        excess = max(0, int(mask.sum()) - keep)

        eligible = mask & ~self._last_of_each_layer(names, weights)
        new_mask = mask & ~among(eligible, magnitude, excess, smallest_first=True)
        splits = np.cumsum([len(self.masks[name]) for name in names])[:-1]
        return {
            name: LayerUpdate(part, ~part, int(self.masks[name].sum() - part.sum()), 0)
            for name, part in zip(names, np.split(new_mask, splits), strict=True)
        }

    def _last_of_each_layer(
        self, names: list[str], weights: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """The weight of every layer that would drop last, and so never drops."""
        protected = []
        for name in names:
            live = self.masks[name]
            order = among_order(live, np.abs(weights[name]))
            last = np.zeros(len(live), dtype=bool)
            last[order[-1]] = True
            protected.append(last)
        return np.concatenate(protected)


def among_order(eligible: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Eligible positions from the first to be dropped to the last."""
    positions = np.flatnonzero(eligible)
    return positions[np.argsort(scores[positions], kind="stable")]
