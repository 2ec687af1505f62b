"""MEST (Yuan et al., 2021): score |w| + lambda |g|; a hard bound, or one that growth exceeds."""

from collections.abc import Mapping

import numpy as np
import torch

from tests.oracle.masks import uniform_scores
from tests.oracle.methods import LayerUpdate, _DropGrowOracle, exchange
from tests.oracle.schedules import cosine_fraction


class MESTOracle(_DropGrowOracle):
    """Live counts of the initial masks are the targets."""

    def __init__(
        self,
        masks: Mapping[str, np.ndarray],
        *,
        lam: float,
        grow: str,
        bound: str,
        generator: torch.Generator,
        **schedule: object,
    ):
        super().__init__(masks, **schedule)
        self.lam, self.grow, self.bound, self.generator = lam, grow, bound, generator
        self.targets = {name: int(mask.sum()) for name, mask in masks.items()}
        self.sparse = [name for name, mask in masks.items() if not mask.all()]

    def is_update(self, t: int) -> bool:
        at_the_end = self.bound == "soft" and t == self.t_end
        return at_the_end or (t % self.delta_t == 0 and t < self.t_end)

    def update(
        self,
        t: int,
        weights: Mapping[str, np.ndarray],
        gradients: Mapping[str, np.ndarray | None],
    ) -> dict[str, LayerUpdate]:
        fraction = 0.0 if t == self.t_end else cosine_fraction(self.alpha, t, self.t_end)
        updates = {}
        for name in self.sparse:
            mask, target = self.masks[name], self.targets[name]
            live = int(mask.sum())
            drop = int(fraction * live) if self.bound == "hard" else live - target
            grow = min(int(fraction * target), len(mask) - live + drop)
            if self.bound == "hard":
                grow = drop
            # All in single precision, as the weights are.
            score = np.abs(weights[name]).astype(np.float32)
            score = score + np.float32(self.lam) * np.abs(gradients[name]).astype(np.float32)
            growth = np.zeros(len(mask))
            if grow:
                growth = (
                    uniform_scores(self.generator, len(mask))
                    if self.grow == "random"
                    else np.abs(gradients[name])
                )
            updates[name] = exchange(mask, score, growth, drop, grow)
            self.masks[name] = updates[name].mask
        return updates
