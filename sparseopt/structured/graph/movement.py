"""Rules of operators that move values about: reshaping, permuting, joining, cutting."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from sparseopt.structured.graph.atoms import Labels, Positions
from sparseopt.structured.graph.calls import Call, Labelled, rule_for

__all__: list[str] = []


@rule_for("cat", "concat", "concatenate")
def _concatenation(call: Call) -> Labels:
    """Put atoms one after another along the joined dimension, and couple them along the others."""
    tensors = [node for node in call.arguments["tensors"] if call.shape(node) != (0,)]
    rank = len(call.shape())
    along = call.arguments["dim"] % rank
    return tuple(
        _one_after_another(call, tensors, dim)
        if dim == along
        else _side_by_side(call, tensors, dim)
        for dim in range(rank)
    )


def _one_after_another(call: Call, tensors: list[Node], dim: int) -> Positions | None:
    parts = [call.labels(tensor)[dim] for tensor in tensors]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        for part in known:
            call.block(part, "joins them with a fixed dimension")
        return None
    return np.concatenate(known)


def _side_by_side(call: Call, tensors: list[Node], dim: int) -> Positions | None:
    result = call.labels(tensors[0])[dim]
    for tensor in tensors[1:]:
        result = call.join(result, call.labels(tensor)[dim])
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
    """Follow each dimension's atoms by moving them as the values are moved."""
    operand = call.node.args[0]
    assert isinstance(operand, Node)
    results = call.node.meta["val"]
    several = isinstance(results, (list, tuple))
    shapes = [tuple(one.shape) for one in (results if several else [results])]
    labels: list[list[Positions | None]] = [[None] * len(shape) for shape in shapes]
    for dim, atoms in enumerate(call.labels(operand)):
        if atoms is not None:
            for number, moved in enumerate(_move(call, operand, dim, atoms)):
                _place(call, atoms, moved, labels[number])
    return [tuple(one) for one in labels] if several else tuple(labels[0])


def _move(call: Call, operand: Node, dim: int, atoms: Positions) -> list[Tensor]:
    """Run the operator on a tensor that holds, everywhere, the atom along ``dim``."""
    shape = call.shape(operand)
    along = [-1 if other == dim else 1 for other in range(len(shape))]
    stand_in = torch.from_numpy(atoms).view(along).expand(shape)

    def value(node: Node) -> Any:
        return stand_in if node is operand else torch.empty(call.shape(node))

    assert isinstance(call.node.target, torch._ops.OpOverload)
    result = call.node.target(*map_arg(call.node.args, value), **map_arg(call.node.kwargs, value))
    return list(result) if isinstance(result, (list, tuple)) else [result]


def _place(call: Call, atoms: Positions, moved: Tensor, labels: list[Positions | None]) -> None:
    """Find the one dimension along which ``atoms`` lie now, or block them."""
    varying = [dim for dim, size in enumerate(moved.shape) if size > 1 and _varies(moved, dim)]
    if len(varying) != 1:
        call.block(atoms, "spreads them over several dimensions" if varying else "takes some apart")
        return
    (dim,) = varying
    along = moved[tuple(slice(None) if d == dim else 0 for d in range(moved.dim()))].numpy()
    if not _is_whole(atoms, along):
        call.block(atoms, "takes some of them apart from others")
    elif labels[dim] is not None:
        call.block(atoms, "merges them with others into one dimension")
        call.block(labels[dim], "merges them with others into one dimension")
        labels[dim] = None
    else:
        labels[dim] = along.copy()


def _varies(moved: Tensor, dim: int) -> bool:
    return bool((moved != moved.narrow(dim, 0, 1)).any())


def _is_whole(atoms: Positions, along: Positions) -> bool:
    """Whether every atom is still there, all of them equally often."""
    before, expected = np.unique(atoms, return_counts=True)
    after, counts = np.unique(along, return_counts=True)
    if not np.array_equal(before, after):
        return False
    return len(set((counts / expected).tolist())) == 1
