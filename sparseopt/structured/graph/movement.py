"""Rules of operators that rearrange values: reshape, permute, concatenate, split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from sparseopt.structured.graph.atoms import Labels, Positions, axes_of, is_grid
from sparseopt.structured.graph.calls import Call, Labelled, rule_for

__all__: list[str] = []


@rule_for("cat", "concat", "concatenate")
def _concatenation(call: Call) -> Labels:
    """Concatenate atoms along the joined dimension, and couple them along the other dimensions."""
    tensors = [node for node in call.arguments["tensors"] if call.shape(node) != (0,)]
    rank = len(call.shape())
    along = call.arguments["dim"] % rank
    grids = [call.labels_and_grids(tensor) for tensor in tensors]
    if any(is_grid(labels[along]) for labels in grids):
        joined = _joined_grid([labels[along] for labels in grids], along)
        if joined is not None:
            axes = axes_of(joined)
            return tuple(joined if dim in axes else None for dim in range(rank))
    return tuple(
        _one_after_another(call, tensors, dim)
        if dim == along
        else _side_by_side(call, tensors, dim)
        for dim in range(rank)
    )


def _joined_grid(parts: Sequence[Positions | None], along: int) -> Positions | None:
    """Return the concatenated grid, if all parts are grids with equal other dimensions."""
    shapes = {
        part.shape[:along] + part.shape[along + 1 :]
        for part in parts
        if part is not None and part.ndim > 1
    }
    known = [part for part in parts if part is not None and part.ndim > 1]
    if len(known) < len(parts) or len(shapes) > 1:
        return None
    return np.concatenate(known, axis=along)


def _one_after_another(call: Call, tensors: list[Node], dim: int) -> Positions | None:
    parts = [call.labels(tensor)[dim] for tensor in tensors]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        for part in known:
            call.block(part, "joins them with a fixed dimension")
        return None
    return np.concatenate(known)


def _side_by_side(call: Call, tensors: list[Node], dim: int) -> Positions | None:
    result = call.keep_only(tensors[0], dim)
    for tensor in tensors[1:]:
        result = call.join(result, call.keep_only(tensor, dim))
    return result


@rule_for(
    "T",
    "chunk",
    "clone",
    "expand",
    "expand_as",
    "flatten",
    "flip",
    "movedim",
    "mT",
    "narrow",
    "numpy_T",
    "permute",
    "repeat",
    "reshape",
    "select",
    "slice",
    "split",
    "split_with_sizes",
    "squeeze",
    "swapaxes",
    "t",
    "tensor_split",
    "transpose",
    "unbind",
    "unflatten",
    "unsqueeze",
    "_unsafe_view",
    "view",
)
def _movement(call: Call) -> Labelled:
    """Follow atoms by running the operator on tensors that hold atoms instead of values.

    A reshape may spread the atoms of one dimension over several dimensions, which then have a grid.
    """
    operand = call.node.args[0]
    assert isinstance(operand, Node)
    results = call.node.meta["val"]
    several = isinstance(results, (list, tuple))
    shapes = [tuple(result.shape) for result in (results if several else [results])]
    labels: list[list[Positions | None]] = [[None] * len(shape) for shape in shapes]
    for atoms in _families(call.labels_and_grids(operand), len(call.shape(operand))):
        for number, moved in enumerate(_move(call, operand, atoms)):
            _place(call, atoms, moved.numpy(), labels[number])
    return [tuple(own) for own in labels] if several else tuple(labels[0])


@rule_for("repeat_interleave")
def _repetition(call: Call) -> Labelled:
    """Follow atoms that are repeated equally often; numbers computed by the model block them."""
    if isinstance(call.arguments["repeats"], int):
        return _movement(call)
    call.block_all(call.arguments.get("self"), "repeats them by numbers that it computes")
    return (None,) * len(call.shape())


@rule_for("new_empty", "new_full", "new_ones", "new_zeros")
def _new_tensor(call: Call) -> Labels:
    """Return no atoms: the operator reads only the type of its argument."""
    return (None,) * len(call.shape())


def _families(labels: Labels, rank: int) -> list[Positions]:
    """Return each set of atoms once, along one dimension or several, in the form of a grid."""
    found: list[Positions] = []
    for dim, atoms in enumerate(labels):
        if atoms is None:
            continue
        if not is_grid(atoms):
            found.append(atoms.reshape([-1 if other == dim else 1 for other in range(rank)]))
        elif dim == axes_of(atoms)[0]:
            found.append(atoms)
    return found


def _move(call: Call, operand: Node, atoms: Positions) -> list[Tensor]:
    """Run the operator on a tensor that holds atoms instead of values."""
    expanded = torch.from_numpy(atoms).expand(call.shape(operand))
    try:
        result = _called(call, operand, expanded)
    except RuntimeError:
        # It was a view that only the operand's own memory layout allows.
        result = _called(call, operand, expanded.contiguous())
    return list(result) if isinstance(result, (list, tuple)) else [result]


def _called(call: Call, operand: Node, stand_in: Tensor) -> Any:
    def value(node: Node) -> Any:
        return stand_in if node is operand else torch.empty(call.shape(node))

    assert isinstance(call.node.target, torch._ops.OpOverload)
    return call.node.target(*map_arg(call.node.args, value), **map_arg(call.node.kwargs, value))


def _place(call: Call, atoms: Positions, moved: Positions, labels: list[Positions | None]) -> None:
    """Find the dimensions of the result along which ``atoms`` lie, and set its labels there.

    These are the dimensions along which the moved atoms differ. If other atoms have such a
    dimension already, the operator merged both into one dimension, and both are blocked. If some
    atoms are missing, or not all appear equally often, the result is a piece of the operand.
    """
    axes = [dim for dim, size in enumerate(moved.shape) if size > 1 and _varies(moved, dim)]
    kept = tuple(slice(None if dim in axes else 1) for dim in range(moved.ndim))
    grid = moved[kept].copy()
    if not _is_whole(atoms, moved):
        call.atoms.note_piece(grid, atoms, call.reason("separates some of them from others"))
    taken = {id(labels[dim]): labels[dim] for dim in axes if labels[dim] is not None}
    if taken:
        call.block(atoms, "merges them with others into one dimension")
        for other in taken.values():
            call.block(other, "merges them with others into one dimension")
        labels[:] = [None if id(own) in taken else own for own in labels]
    elif len(axes) == 1:
        labels[axes[0]] = grid.reshape(-1)
    elif axes:
        if len(axes_of(atoms)) < len(axes):
            call.atoms.note_grid(grid, call.reason("spreads them over several dimensions"))
        for dim in axes:
            labels[dim] = grid


def _varies(moved: Positions, dim: int) -> bool:
    return bool((moved != moved.take([0], axis=dim)).any())


def _is_whole(atoms: Positions, moved: Positions) -> bool:
    """Whether every atom is still there, and all appear equally often."""
    before, expected = np.unique(atoms, return_counts=True)
    after, counts = np.unique(moved, return_counts=True)
    if not np.array_equal(before, after):
        return False
    return len(set((counts / expected).tolist())) == 1
