"""Rules of operators that compute each result from the values at the same place."""

from __future__ import annotations

from typing import Final

import torch
from torch.fx import Node

from sparseopt.structured.graph.atoms import Labels, Positions, of_rank
from sparseopt.structured.graph.calls import Call, rule_for
from sparseopt.structured.graph.tracing import is_number, operator_name

__all__ = ["is_placed_by_number", "is_pointwise", "pointwise"]

#: Pointwise operators that torch does not tag as such.
UNTAGGED: Final = frozenset(
    {
        "alias",
        "alpha_dropout",
        "contiguous",
        "copy",
        "detach",
        "dropout",
        "feature_alpha_dropout",
        "feature_dropout",
        "gelu",
        "hardswish",
        "lift_fresh_copy",
        "to",
        "type_as",
    }
)


def is_pointwise(node: Node) -> bool:
    """Whether each value of a result is computed from the arguments' values at the same place."""
    assert isinstance(node.target, torch._ops.OpOverload)
    tagged = torch.Tag.pointwise in node.target.tags
    return tagged or operator_name(node).removesuffix("_") in UNTAGGED


def is_placed_by_number(node: Node) -> bool:
    """Whether a number decides which values a call reads or writes, as in ``x[:, :n.item()]``."""
    return any(map(is_number, node.all_input_nodes)) and not is_pointwise(node)


def pointwise(call: Call) -> Labels:
    """Couple the dimensions that broadcasting lines up; a dimension of size 1 is not coupled."""
    shape = call.shape()
    tensors = [node for node in call.node.all_input_nodes if call.labelling.each(node) != [()]]
    call.line_up(tensors, range(-len(shape), 0))
    return of_rank(_lined_up(call, tensors, dim - len(shape)) for dim in range(len(shape)))


def _lined_up(call: Call, tensors: list[Node], dim: int) -> Positions | None:
    """Couple what an element-wise operator combines along one dimension, counted from the end.

    Tensors of size 1 in this dimension are broadcast and left out. If one of the others has no
    atoms, its size is fixed, so the atoms of all are blocked.
    """
    size = call.shape()[dim]
    meeting = []
    for tensor in tensors:
        shape = call.shape(tensor)
        if len(shape) >= -dim and shape[dim] == size:
            meeting.append(call.labels_and_grids(tensor)[dim])
            # A single tensor, as in a cast, gets its role from the operator that uses the result.
            if len(tensors) > 1:
                call.role(tensor, len(shape) + dim, "elementwise")
    if not meeting:
        return None
    result = meeting[0]
    for other in meeting[1:]:
        result = call.join(result, other)
    if result is None:
        for atoms in meeting:
            call.block(atoms, "combines them with a fixed dimension")
    return result


@rule_for("empty_like", "full_like", "ones_like", "rand_like", "randn_like", "zeros_like")
def _like(call: Call) -> Labels:
    return pointwise(call)


@rule_for("prelu")
def _prelu(call: Call) -> Labels:
    labels = call.labels(call.arguments["self"])
    slope = call.arguments["weight"]
    if call.shape(slope) != (1,) and len(labels) > 1:
        call.join_all(labels[1], (slope, "elementwise"))
    return labels
