"""N:M: RigL with every group of M neighbours keeping exactly N, group by group in plain loops."""

from collections.abc import Iterator, Mapping

import numpy as np

from tests.oracle.methods import LayerUpdate, RigLOracle
from tests.oracle.schedules import cosine_fraction
from tests.oracle.selection import among, largest


def groups(shape: tuple[int, ...], m: int) -> Iterator[np.ndarray]:
    """Logical positions of M neighbours along dimension 1, all other indices the same."""
    positions = np.arange(int(np.prod(shape))).reshape(shape[0], shape[1], -1)
    for row in range(positions.shape[0]):
        for place in range(positions.shape[2]):
            for start in range(0, shape[1], m):
                yield positions[row, start : start + m, place]


def best_n_of_m(scores: np.ndarray, shape: tuple[int, ...], n: int, m: int) -> np.ndarray:
    mask = np.zeros(scores.size, dtype=bool)
    for group in groups(shape, m):
        mask[group] = largest(scores[group], n)
    return mask


class NMOracle(RigLOracle):
    """Drops by magnitude over the layer; each group grows as many weights as it lost."""

    def __init__(
        self,
        masks: Mapping[str, np.ndarray],
        shapes: Mapping[str, tuple[int, ...]],
        m: int,
        **schedule: object,
    ):
        super().__init__(masks, **schedule)
        self.shapes, self.m = shapes, m

    def update(
        self,
        t: int,
        weights: Mapping[str, np.ndarray],
        gradients: Mapping[str, np.ndarray | None],
    ) -> dict[str, LayerUpdate]:
        updates = {}
        for name, mask in self.masks.items():
            if mask.all():
                continue
            k = int(cosine_fraction(self.alpha, t, self.t_end) * int(mask.sum()))
            survivors = mask & ~among(mask, np.abs(weights[name]), k, smallest_first=True)
            new = survivors.copy()
            for group in groups(self.shapes[name], self.m):
                lost = int(mask[group].sum() - survivors[group].sum())
                free = ~(mask[group] if self.regrow == "never" else survivors[group])
                growth = np.abs(gradients[name][group])
                new[group] |= among(free, growth, lost, smallest_first=False)
            stayed = survivors if self.regrow == "zero" else mask & new
            updates[name] = LayerUpdate(new, ~stayed, k, k)
            self.masks[name] = new
        return updates
