"""Atoms: single positions along dimensions of a model's tensors, and their coupling."""

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

#: One atom for every position along one dimension. If a reshape spread the atoms over several
#: dimensions (over heads and the positions in a head, say), they form a *grid*: an array of the
#: tensor's rank, of size 1 along the other dimensions.
Positions = NDArray[np.int64]
#: The atoms of every dimension of a tensor, or ``None`` where nothing can be removed. A grid is the
#: entry of each of its dimensions.
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
    """Add leading dimensions to grids from tensors of lower rank, up to the number of labels."""
    labels = tuple(labels)
    longer: dict[int, Positions] = {}
    for atoms in labels:
        if is_grid(atoms):
            missing = (1,) * (len(labels) - atoms.ndim)
            longer[id(atoms)] = atoms.reshape(missing + atoms.shape) if missing else atoms
    return tuple(longer.get(id(atoms), atoms) for atoms in labels)


def without_dims(labels: Labels, dims: Iterable[int]) -> Labels:
    """Return the labels of a tensor that has lost ``dims``. No grid may lie along these."""
    dims = set(dims)
    shorter = {id(atoms): atoms.squeeze(tuple(dims)) for atoms in labels if is_grid(atoms)}
    return tuple(
        shorter.get(id(atoms), atoms) for dim, atoms in enumerate(labels) if dim not in dims
    )


def settle(labels: Labels, dim: int, atoms: CoupledIndices) -> Labels:
    """Couple the atoms of a grid along ``dim``, so that none can be removed along it alone.

    Afterwards all atoms at one place of the other dimensions belong together, such as all positions
    of one head.

    Returns:
        The new labels, without the grid at ``dim``.
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
    """Positions along dimensions of named tensors, with the couplings between them.

    Two atoms are coupled if removing one from the model requires removing the other. A blocked atom
    cannot be removed, and neither can any atom that is coupled with it.
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
        """All dimensions that have atoms, in the order in which their tensors were added."""
        return list(self._axes.values())

    def of_tensor(self, name: str, shape: tuple[int, ...]) -> Labels:
        """Return atoms for a named tensor, the same ones every time.

        A dimension of one position has no atoms, because it cannot become smaller.
        """
        self._ranks[name] = len(shape)
        return tuple(self._along(name, dim, size) for dim, size in enumerate(shape))

    def rank(self, name: str) -> int:
        """Return how many dimensions a named tensor has."""
        return self._ranks[name]

    def couple(self, left: Positions, right: Positions) -> None:
        """Couple each atom in ``left`` with the atom at the same place in ``right``."""
        self._edges.append((left, right))

    def block(self, atoms: Positions | None, reason: str) -> None:
        """Block ``atoms``, which cannot be removed, and record the reason."""
        if atoms is not None:
            self._blocked.append((atoms, reason))

    def note_piece(self, piece: Positions, whole: Positions, reason: str) -> None:
        """Record that a call takes ``piece`` from ``whole``, by numbers written in the code.

        A class can be removed if it has the same share of the atoms in both, because then all
        pieces shrink in proportion. All other classes are blocked.
        """
        self._pieces.append((piece.reshape(-1), whole.reshape(-1), reason))

    def note_grid(self, grid: Positions, reason: str) -> None:
        """Record that a call spreads atoms over the dimensions of ``grid``.

        A class can be removed if it consists of complete slices along one dimension, such as heads.
        All other classes are blocked.
        """
        self._grids.append((grid.squeeze(), reason))

    def note_heads(self, atoms: Positions | None) -> None:
        """Record that products are repeated over ``atoms``, as over the heads of attention."""
        if atoms is not None:
            self._heads.append(atoms.reshape(-1))

    def heads(self) -> set[int]:
        """Return the classes over which products are repeated, by their smallest atoms."""
        classes = self.classes()
        return {int(root) for atoms in self._heads for root in np.unique(classes[atoms])}

    def divided(self) -> set[int]:
        """Return the classes that calls split by numbers in the code, or spread over a grid."""
        classes = self.classes()
        noted = [whole for _, whole, _ in self._pieces] + [grid for grid, _ in self._grids]
        return {int(root) for atoms in noted for root in np.unique(classes[atoms])}

    def classes(self) -> Positions:
        """Return for each atom the smallest atom that it is coupled with, ``(atoms,)``.

        These are the connected components of the couplings. Each atom points to a smaller or equal
        atom of its component. A round lowers the roots of both ends of every coupling to the
        smaller of the two, and then shortens all chains of pointers. The loop ends when a round
        changes nothing.
        """
        lowest = np.arange(self._count)
        if not self._edges:
            return lowest
        left = np.concatenate([pair[0] for pair in self._edges])
        right = np.concatenate([pair[1] for pair in self._edges])
        while True:
            before = lowest
            lowest = lowest.copy()
            least = np.minimum(lowest[left], lowest[right])
            # The roots are lowered, so that all atoms that point to them follow.
            np.minimum.at(lowest, before[left], least)
            np.minimum.at(lowest, before[right], least)
            lowest = _shortened(lowest)
            if np.array_equal(before, lowest):
                return lowest

    def reasons(self) -> dict[int, str]:
        """Return the first reason why a class cannot be removed, by its smallest atom."""
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
    """Make every atom point to the root of its chain."""
    while True:
        further = parents[parents]
        if np.array_equal(further, parents):
            return parents
        parents = further


def _in_other_shares(piece: Positions, whole: Positions) -> Positions:
    """Return the classes whose share of the atoms in ``piece`` differs from that in ``whole``."""
    roots, places = np.unique(whole, return_inverse=True)
    in_whole = np.bincount(places, minlength=len(roots))
    in_piece = np.bincount(np.searchsorted(roots, piece), minlength=len(roots))
    differs: Positions = roots[in_piece * len(whole) != in_whole * len(piece)]
    return differs


def _across_slices(grid: Positions) -> Positions:
    """Return the classes that are not complete slices of a grid along one of its dimensions.

    A class is good if, along some dimension, the slices that contain only this class have all its
    cells.
    """
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
