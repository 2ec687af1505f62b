"""Single positions along dimensions of tensors of a model, and which of them belong together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "AxisOfTensor",
    "CoupledIndices",
    "Labels",
    "Positions",
    "axes_of",
    "is_grid",
    "of_rank",
    "settle",
    "without_dims",
]

#: An atom for every position along one dimension; or, where a reshape spread atoms over several
#: dimensions (of heads and their positions, say), a *grid*: an array of the tensor's rank, of
#: size 1 along the other dimensions.
Positions = NDArray[np.int64]
#: For every dimension of a tensor its atoms, or ``None`` where nothing can be taken out. A grid
#: stands at each of its dimensions.
Labels = tuple[Positions | None, ...]


@dataclass(frozen=True)
class AxisOfTensor:
    """One dimension of a parameter or buffer, and the atoms along it."""

    name: str
    dim: int
    atoms: Positions


def is_grid(atoms: Positions | None) -> TypeGuard[Positions]:
    """Whether atoms lie along several dimensions."""
    return atoms is not None and atoms.ndim > 1


def axes_of(grid: Positions) -> list[int]:
    """Return the dimensions that a grid lies along."""
    return [dim for dim, size in enumerate(grid.shape) if size > 1]


def of_rank(labels: Iterable[Positions | None]) -> Labels:
    """Give grids that come from tensors of fewer dimensions as many as there are labels."""
    labels = tuple(labels)
    longer: dict[int, Positions] = {}
    for atoms in labels:
        if is_grid(atoms):
            missing = (1,) * (len(labels) - atoms.ndim)
            longer[id(atoms)] = atoms.reshape(missing + atoms.shape) if missing else atoms
    return tuple(longer.get(id(atoms), atoms) for atoms in labels)


def without_dims(labels: Labels, dims: Iterable[int]) -> Labels:
    """Return the labels of a tensor that has lost ``dims``, along which no grid lies."""
    dims = set(dims)
    shorter = {id(atoms): atoms.squeeze(tuple(dims)) for atoms in labels if is_grid(atoms)}
    return tuple(
        shorter.get(id(atoms), atoms) for dim, atoms in enumerate(labels) if dim not in dims
    )


def settle(labels: Labels, dim: int, atoms: CoupledIndices) -> Labels:
    """Couple what a grid has along ``dim``, so that nothing can be taken out along it alone.

    What lies at one place of the other dimensions then goes together, as all positions of a head
    do.

    Returns:
        The labels after that: without the grid at ``dim``.
    """
    grid = labels[dim]
    if grid is None or grid.ndim == 1:
        return labels
    first = grid.take([0], axis=dim)
    atoms.couple(grid.reshape(-1), np.broadcast_to(first, grid.shape).reshape(-1))
    axes = axes_of(first)
    rest = first.reshape(-1) if len(axes) == 1 else first
    return tuple(
        own if own is not grid else rest if place in axes else None
        for place, own in enumerate(labels)
    )


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
        self._pieces: list[tuple[Positions, Positions, str]] = []
        self._grids: list[tuple[Positions, str]] = []
        self._heads: list[Positions] = []
        self._ranks: dict[str, int] = {}

    @property
    def axes(self) -> list[AxisOfTensor]:
        """Every dimension that has atoms, in the order in which tensors were met."""
        return list(self._axes.values())

    def of_tensor(self, name: str, shape: tuple[int, ...]) -> Labels:
        """Return atoms for a named tensor, the same ones every time.

        A dimension of one position has none: it cannot become smaller.
        """
        self._ranks[name] = len(shape)
        return tuple(self._along(name, dim, size) for dim, size in enumerate(shape))

    def rank(self, name: str) -> int:
        """Return how many dimensions a named tensor has."""
        return self._ranks[name]

    def couple(self, left: Positions, right: Positions) -> None:
        """Say that atoms of equal place in ``left`` and ``right`` go together or not at all."""
        self._edges.append((left, right))

    def block(self, atoms: Positions | None, reason: str) -> None:
        """Say that none of ``atoms`` can be taken out, and why."""
        if atoms is not None:
            self._blocked.append((atoms, reason))

    def note_piece(self, piece: Positions, whole: Positions, reason: str) -> None:
        """Say that a call takes ``piece`` out of ``whole``, by numbers that the code has.

        What has the same share of its atoms in both can go: all pieces shrink alike. Whatever else
        is blocked.
        """
        self._pieces.append((piece.reshape(-1), whole.reshape(-1), reason))

    def note_grid(self, grid: Positions, reason: str) -> None:
        """Say that a call spreads atoms over the dimensions of ``grid``.

        What takes whole slices out along one dimension, such as heads, can go. Whatever else is
        blocked.
        """
        self._grids.append((grid.squeeze(), reason))

    def note_heads(self, atoms: Positions | None) -> None:
        """Say that products are repeated over ``atoms``, as over the heads of attention."""
        if atoms is not None:
            self._heads.append(atoms.reshape(-1))

    def heads(self) -> set[int]:
        """Return the classes, by their smallest atom, that products are repeated over."""
        classes = self.classes()
        return {int(root) for atoms in self._heads for root in np.unique(classes[atoms])}

    def divided(self) -> set[int]:
        """Return the classes that code takes apart, by numbers of its own, or spreads."""
        classes = self.classes()
        noted = [whole for _, whole, _ in self._pieces] + [grid for grid, _ in self._grids]
        return {int(root) for atoms in noted for root in np.unique(classes[atoms])}

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
        for atoms, reason in (
            *self._blocked,
            *(
                (_in_other_shares(classes[piece], classes[whole]), why)
                for piece, whole, why in self._pieces
            ),
            *((_across_slices(classes[grid]), why) for grid, why in self._grids),
        ):
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


def _in_other_shares(piece: Positions, whole: Positions) -> Positions:
    """Return the classes that do not have the same share of both."""
    roots, places = np.unique(whole, return_inverse=True)
    in_whole = np.bincount(places, minlength=len(roots))
    in_piece = np.bincount(np.searchsorted(roots, piece), minlength=len(roots))
    differs: Positions = roots[in_piece * len(whole) != in_whole * len(piece)]
    return differs


def _across_slices(grid: Positions) -> Positions:
    """Return the classes that are not whole slices of a grid along one of its dimensions."""
    roots, places = np.unique(grid, return_inverse=True)
    places = places.reshape(grid.shape)
    cells = np.bincount(places.reshape(-1), minlength=len(roots))
    good = np.zeros(len(roots), dtype=np.bool_)
    for dim, size in enumerate(grid.shape):
        slices = np.moveaxis(places, dim, 0).reshape(size, -1)
        uniform = slices[(slices == slices[:, :1]).all(1)]
        good |= np.bincount(uniform.reshape(-1), minlength=len(roots)) == cells
    across: Positions = roots[~good]
    return across
