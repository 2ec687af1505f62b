"""Drop and grow: static, SET and RigL."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from tests.oracle.masks import uniform_scores
from tests.oracle.schedules import cosine_fraction, is_update_step
from tests.oracle.selection import among


@dataclass
class LayerUpdate:
    """The result of an update for one layer.

    Attributes:
        mask: The live weights after the update.
        reset: Weights that start afresh: value 0, optimizer state as of a new parameter.
        dropped: How many weights were dropped.
        grown: How many were grown, weights that had just been dropped included.
    """

    mask: np.ndarray
    reset: np.ndarray
    dropped: int
    grown: int


def regrowth(
    mask: np.ndarray,
    magnitude: np.ndarray,
    growth_of: Callable[[], np.ndarray],
    fraction: float,
    regrow: str = "keep",
) -> LayerUpdate:
    """Drop the smallest, grow the largest scores outside the survivors.

    A layer so small that its share is less than one weight is left as it is, and asks for no
    growth scores: random growth draws no numbers for it.

    Args:
        mask: Live weights before the update.
        magnitude: |w|, by which live weights are dropped.
        growth_of: Gives the growth score of every weight, |gradient| or random.
        fraction: Of the live weights, how many are dropped.
        regrow: "keep", "zero" or "never": what becomes of a weight dropped in this very update.
    """
    k = int(fraction * int(mask.sum()))
    if regrow == "never":
        k = min(k, int((~mask).sum()))
    if k == 0:
        return LayerUpdate(mask, ~mask, dropped=0, grown=0)
    survivors = mask & ~among(mask, magnitude, k, smallest_first=True)
    candidates = ~mask if regrow == "never" else ~survivors
    grown = among(candidates, growth_of(), k, smallest_first=False)
    new_mask = survivors | grown
    truly_new = grown if regrow == "zero" else grown & ~mask
    return LayerUpdate(new_mask, ~new_mask | truly_new, dropped=k, grown=k)


def exchange(
    mask: np.ndarray, magnitude: np.ndarray, growth: np.ndarray, drop: int, grow: int
) -> LayerUpdate:
    """Drop the `drop` smallest, grow the `grow` best of all that did not survive.

    A weight that comes straight back was never gone.
    """
    survivors = mask & ~among(mask, magnitude, drop, smallest_first=True)
    new_mask = survivors | among(~survivors, growth, grow, smallest_first=False)
    return LayerUpdate(new_mask, ~(mask & new_mask), dropped=drop, grown=grow)


class StaticOracle:
    """Masks that never move."""

    def __init__(self, masks: Mapping[str, np.ndarray]):
        self.masks = dict(masks)

    def is_update(self, t: int) -> bool:
        return False

    def observe(self, t: int, gradients: Mapping[str, np.ndarray | None]) -> None:
        """An ordinary step, whose dense gradients most methods ignore."""


class _DropGrowOracle(StaticOracle):
    """The cadence, the drop fraction and the bookkeeping that SET and RigL share."""

    def __init__(
        self,
        masks: Mapping[str, np.ndarray],
        *,
        delta_t: int,
        t_end: int,
        alpha: float,
        regrow: str = "keep",
    ):
        super().__init__(masks)
        self.delta_t, self.t_end, self.alpha, self.regrow = delta_t, t_end, alpha, regrow

    def is_update(self, t: int) -> bool:
        some_layer_is_sparse = any(not mask.all() for mask in self.masks.values())
        return some_layer_is_sparse and is_update_step(t, self.delta_t, self.t_end)

    def update(
        self,
        t: int,
        weights: Mapping[str, np.ndarray],
        gradients: Mapping[str, np.ndarray | None],
    ) -> dict[str, LayerUpdate]:
        """Move the masks; full layers and layers without a gradient are left out."""
        moving = [
            name
            for name, mask in self.masks.items()
            if not mask.all() and self.takes_part(gradients[name])
        ]
        if any(g is not None and not np.isfinite(g).all() for g in gradients.values()):
            return {}
        fraction = cosine_fraction(self.alpha, t, self.t_end)
        updates = {}
        for name in moving:
            updates[name] = regrowth(
                self.masks[name],
                np.abs(weights[name]),
                partial(self.growth_scores, gradients[name]),
                fraction,
                self.regrow,
            )
            self.masks[name] = updates[name].mask
        return updates

    def takes_part(self, gradient: np.ndarray | None) -> bool:
        return gradient is not None and bool(gradient.any())

    def growth_scores(self, gradient: np.ndarray) -> np.ndarray:
        raise NotImplementedError


class RigLOracle(_DropGrowOracle):
    """Grows where the gradient is largest (Evci et al., 2020, algorithm 1)."""

    def growth_scores(self, gradient: np.ndarray) -> np.ndarray:
        return np.abs(gradient)


class SETOracle(_DropGrowOracle):
    """Grows at random (Mocanu et al., 2018)."""

    def __init__(
        self, masks: Mapping[str, np.ndarray], *, generator: torch.Generator, **schedule: object
    ):
        super().__init__(masks, **schedule)
        self.generator = generator

    def takes_part(self, gradient: np.ndarray | None) -> bool:
        return gradient is not None

    def growth_scores(self, gradient: np.ndarray) -> np.ndarray:
        return uniform_scores(self.generator, len(gradient))
