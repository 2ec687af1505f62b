"""Single positions along dimensions of tensors of a model, and which of them belong together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["AxisOfTensor", "CoupledIndices", "Labels", "Positions"]

#: An atom for every position along one dimension.
Positions = NDArray[np.int64]
#: For every dimension of a tensor its atoms, or ``None`` where nothing can be taken out.
Labels = tuple[Positions | None, ...]


@dataclass(frozen=True)
class AxisOfTensor:
    """One dimension of a parameter or buffer, and the atoms along it."""

    name: str
    dim: int
    atoms: Positions


class CoupledIndices:
    """Positions along dimensions of named tensors, coupled wherever one cannot go alone.

    Two atoms are coupled if to take one out of the model takes out the other. A blocked atom
    cannot be taken out, and neither can what is coupled with it.
    """

    def __init__(self) -> None:
        self._count = 0
        self._axes: dict[tuple[str, int], AxisOfTensor] = {}
        self._edges: list[tuple[Positions, Positions]] = []
        self._blocked: list[tuple[Positions, str]] = []

    @property
    def axes(self) -> list[AxisOfTensor]:
        """Every dimension that has atoms, in the order in which tensors were met."""
        return list(self._axes.values())

    def of_tensor(self, name: str, shape: tuple[int, ...]) -> Labels:
        """Return atoms for a named tensor, the same ones every time.

        A dimension of one position has none: it cannot become smaller.
        """
        return tuple(self._along(name, dim, size) for dim, size in enumerate(shape))

    def couple(self, left: Positions, right: Positions) -> None:
        """Say that atoms of equal place in ``left`` and ``right`` go together or not at all."""
        self._edges.append((left, right))

    def block(self, atoms: Positions | None, reason: str) -> None:
        """Say that none of ``atoms`` can be taken out, and why."""
        if atoms is not None:
            self._blocked.append((atoms, reason))

    def classes(self) -> Positions:
        """Return for each atom the smallest atom that it is coupled with, ``(atoms,)``."""
        lowest = np.arange(self._count)
        if not self._edges:
            return lowest
        left = np.concatenate([pair[0] for pair in self._edges])
        right = np.concatenate([pair[1] for pair in self._edges])
        while True:
            before = lowest
            lowest = lowest.copy()
            least = np.minimum(lowest[left], lowest[right])
            # Roots are lowered, so that everything that already points to them follows.
            np.minimum.at(lowest, before[left], least)
            np.minimum.at(lowest, before[right], least)
            lowest = _shortened(lowest)
            if np.array_equal(before, lowest):
                return lowest

    def reasons(self) -> dict[int, str]:
        """Return why a class cannot be taken out, the first reason found, by its smallest atom."""
        classes = self.classes()
        found: dict[int, str] = {}
        for atoms, reason in self._blocked:
            for root in np.unique(classes[atoms]):
                found.setdefault(int(root), reason)
        return found

    def _along(self, name: str, dim: int, size: int) -> Positions | None:
        if size < 2:
            return None
        if (name, dim) not in self._axes:
            atoms = np.arange(self._count, self._count + size)
            self._count += size
            self._axes[name, dim] = AxisOfTensor(name, dim, atoms)
        return self._axes[name, dim].atoms


def _shortened(parents: Positions) -> Positions:
    """Let every atom point to the root of its chain."""
    while True:
        further = parents[parents]
        if np.array_equal(further, parents):
            return parents
        parents = further
