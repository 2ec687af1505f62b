"""Rules of operators that sum over channels: convolutions, linear maps, matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn
from torch.fx import Node

from sparseopt.structured.graph.atoms import Labels, Positions, axes_of, is_grid, of_rank
from sparseopt.structured.graph.calls import Call, Contraction, rule_for

__all__: list[str] = []


@rule_for("linear")
def _linear(call: Call) -> Labels:
    """Sum over the last dimension of the input; the rows of the weight label the results."""
    weight, bias = call.arguments["weight"], call.arguments["bias"]
    operand = call.arguments["input"]
    *leading, _ = call.labels_and_grids(operand, settled=[len(call.shape(operand)) - 1])
    _contract(call, (operand, len(leading)), (weight, 1), padded=False)
    rows = _produced(call, weight, 0, bias)
    return (*leading, rows)


@rule_for("conv1d", "conv2d", "conv3d")
def _convolution(call: Call) -> Labels:
    """Sum over the channels of the input, once for each filter.

    Without groups, a contraction couples the input's channels with the columns of the weight, and
    the filters give their atoms to the output. With groups, everything in a group is coupled, so
    that only complete groups can be removed.
    """
    operand, weight = call.arguments["input"], call.arguments["weight"]
    dim = _channel_dim(call, operand, weight)
    if call.arguments["groups"] == 1:
        padding = call.arguments["padding"]
        _contract(call, (operand, dim), (weight, 1), padded=padding != "valid" and _any(padding))
        rows = _produced(call, weight, 0, call.arguments["bias"])
    else:
        rows = call.labels(weight)[0]
        _tie_groups(call, call.labels(operand)[dim], rows)
        call.role(weight, 0, "grouped")
        call.join_all(rows, (call.arguments["bias"], "bias"))
    return _result(call, operand, dim, rows)


@rule_for("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed_convolution(call: Call) -> Labels:
    """Do the same as for a convolution, with filters and columns of the weight exchanged.

    Zeros are put between the input's values, so a constant channel is not constant in the sums.
    """
    operand, weight = call.arguments["input"], call.arguments["weight"]
    dim = _channel_dim(call, operand, weight)
    if call.arguments["groups"] == 1:
        _contract(call, (operand, dim), (weight, 0), padded=True)
        rows = _produced(call, weight, 1, call.arguments["bias"])
    else:
        columns = call.labels(weight)[0]
        _tie_groups(call, call.labels(operand)[dim], columns)
        call.role(weight, 0, "grouped")
        rows = _first_of_groups(call, columns, call.shape()[dim])
        call.join_all(rows, (call.arguments["bias"], "bias"))
    return _result(call, operand, dim, rows)


@rule_for("matmul", "mm", "bmm")
def _product(call: Call) -> Labels:
    """Sum over the columns of the left matrix and the rows of the right matrix.

    The matrix that comes from a parameter alone is the weight; by default it is the right one. The
    other dimensions are batch dimensions, such as heads, and are coupled between the operands. The
    result has the left operand's rows and the right operand's columns.
    """
    left, right = (node for node in call.node.args if isinstance(node, Node))
    rank, other_rank = len(call.shape(left)), len(call.shape(right))
    if min(rank, other_rank) < 2:
        for argument in (left, right):
            call.block_all(argument, "multiplies them by a vector")
        return (None,) * len(call.shape())
    call.labels_and_grids(left, settled=[rank - 1])
    call.labels_and_grids(right, settled=[other_rank - 2])
    batch = _batch_labels(call, [left, right], len(call.shape()))
    of_left, of_right = (call.labelling.of(argument) for argument in (left, right))
    channels, weight = (left, rank - 1), (right, other_rank - 2)
    if call.labelling.source(right) is None and call.labelling.source(left) is not None:
        channels, weight = weight, channels
        call.role(left, rank - 2, "producer")
    _contract(call, channels, weight, padded=False)
    call.role(right, other_rank - 1, "producer")
    return of_rank((*batch, of_left[-2], of_right[-1]))


@rule_for("scaled_dot_product_attention")
def _attention(call: Call) -> Labels:
    """Couple the heads of queries, keys and values; block all else in queries and keys."""
    query, key, value = (call.arguments[name] for name in ("query", "key", "value"))
    mask = call.arguments.get("attn_mask")
    if call.arguments.get("enable_gqa"):
        _repeat_heads(call, query, key, value)
    rank = len(call.shape())
    operands = [query, key, value, *([mask] if isinstance(mask, Node) else [])]
    for argument in (query, key):
        call.labels_and_grids(argument, settled=[len(call.shape(argument)) - 1])
    heads = _batch_labels(call, operands, rank)
    for argument in (query, key):
        call.block(call.labelling.of(argument)[-1], "scales their products by their number")
    for argument in operands:
        call.block(call.labelling.of(argument)[-2], "attends to them")
    if isinstance(mask, Node):
        call.block(call.labelling.of(mask)[-1], "attends to them")
    return of_rank((*heads, None, call.labelling.of(value)[-1]))


def _repeat_heads(call: Call, query: Node, *others: Node) -> None:
    """Couple each head of keys and values with all heads of queries that share it.

    Afterwards keys and values have the labels of as many heads as the queries.
    """
    heads = call.keep_only(query, len(call.shape(query)) - 3)
    for argument in others:
        dim = len(call.shape(argument)) - 3
        own = call.keep_only(argument, dim)
        if own is not None and heads is not None:
            own = np.repeat(own, len(heads) // len(own))
        call.join(heads, own)
        labels = list(call.labelling.of(argument))
        labels[dim] = heads
        call.labelling.set(argument, tuple(labels))


def _batch_labels(call: Call, operands: Sequence[Node], rank: int) -> list[Positions | None]:
    """Couple the batch dimensions of a product, such as heads, and return their labels.

    First the last two dimensions of each operand are settled, where a grid extends from them into
    batch dimensions. Then the grids of all operands are lined up along the batch dimensions, and
    operands of equal size there are coupled. An operand of size 1 is broadcast and left out.
    """
    for argument in operands:
        labels = call.labelling.of(argument)
        for dim in range(len(labels) - 2, len(labels)):
            atoms = labels[dim]
            if is_grid(atoms) and min(axes_of(atoms)) < len(labels) - 2:
                labels = call.labels_and_grids(argument, settled=[dim])
    dims = range(-rank, -2)
    call.line_up(operands, dims)
    found: list[Positions | None] = []
    for dim in dims:
        size = call.shape()[dim]
        meeting = [node for node in operands if call.size(node, dim) == size > 1]
        result = call.labelling.of(meeting[0])[dim] if meeting else None
        for other in meeting[1:]:
            result = call.join(result, call.labelling.of(other)[dim])
        call.atoms.note_heads(result)
        found.append(result)
    return found


@rule_for("addmm")
def _product_and_sum(call: Call) -> Labels:
    """Contract a matrix product and couple its bias; a matrix in place of the bias blocks both."""
    added, left, right = (call.arguments[name] for name in ("self", "mat1", "mat2"))
    _contract(call, (left, 1), (right, 0), padded=False)
    rows = call.labels(right)[1]
    call.role(right, 1, "producer")
    if len(call.labels(added)) == 1:
        call.join_all(rows, (added, "bias"))
    else:
        call.block_all(added, "adds them to a matrix product")
        call.block(rows, "adds a matrix to them")
    return (call.labels(left)[0], rows)


@rule_for("embedding")
def _embedding(call: Call) -> Labels:
    rows, columns = call.labels(call.arguments["weight"])
    call.block(rows, "looks them up by number")
    call.role(call.arguments["weight"], 1, "producer")
    return (*call.labels(call.arguments["indices"]), columns)


def _contract(
    call: Call, operand: tuple[Node, int], weight: tuple[Node, int], *, padded: bool
) -> None:
    """Couple the channels of an operand with a dimension of a weight, and record the contraction.

    Invariant: every sum over channels is in ``labelling.contractions``, or its channels are
    blocked. Constant propagation and removal rely on this.
    """
    along_operand = call.labels(operand[0])[operand[1]]
    along_weight = call.labels(weight[0])[weight[1]]
    call.role(*weight, "consumer")
    call.role(*operand, "elementwise")
    if _reads_embedding(call, weight[0]):
        for atoms in (along_operand, along_weight):
            call.block(atoms, "has their number written in it, as its embed_dim")
    if operand[0].op == "placeholder" and along_operand is None:
        call.block(along_weight, "reads them from the model's input")
        return
    atoms = call.join(along_operand, along_weight)
    if atoms is not None:
        call.labelling.contractions.append(
            Contraction(call.node, atoms, operand, weight, padded=padded)
        )


def _reads_embedding(call: Call, weight: Node) -> bool:
    """Whether ``weight`` is an input projection of ``nn.MultiheadAttention``."""
    if not call.labelling.trace.is_made_by(call.node, nn.MultiheadAttention):
        return False
    source = call.labelling.source(weight)
    return source is not None and not call.labelling.trace.tensors[source].endswith(
        "out_proj.weight"
    )


def _produced(call: Call, weight: Node, dim: int, bias: Node | None) -> Positions | None:
    rows = call.labels(weight)[dim]
    call.role(weight, dim, "producer")
    call.join_all(rows, (bias, "bias"))
    return rows


def _tie_groups(call: Call, channels: Positions | None, of_weight: Positions | None) -> None:
    """Couple all inputs and all outputs of each group of a grouped convolution.

    A group is the smallest unit that can be removed: all groups have equally many channels.
    """
    if channels is None or of_weight is None:
        call.join(channels, of_weight)
        return
    groups = call.arguments["groups"]
    for atoms in (channels, of_weight):
        first = np.repeat(atoms[:: len(atoms) // groups], len(atoms) // groups)
        call.atoms.couple(atoms, first)
    call.atoms.couple(channels[:: len(channels) // groups], of_weight[:: len(of_weight) // groups])


def _first_of_groups(call: Call, columns: Positions | None, channels: int) -> Positions | None:
    """Return atoms for the results of a transposed grouped convolution.

    Its weight has no dimension for them, so each result gets an atom of its group.
    """
    if columns is None:
        return None
    groups = call.arguments["groups"]
    return np.repeat(columns[:: len(columns) // groups], channels // groups)


def _channel_dim(call: Call, operand: Node, weight: Node) -> int:
    """Return 1, or 0 where the input has no batch dimension."""
    return 1 - (len(call.labels(weight)) - len(call.labels(operand)))


def _result(call: Call, operand: Node, dim: int, rows: Positions | None) -> Labels:
    labels = call.labels(operand)
    for atoms in labels[dim + 1 :]:
        call.block(atoms, "slides over them")
    return (*labels[:dim], rows, *(None for _ in labels[dim + 1 :]))


def _any(padding: Any) -> bool:
    return padding == "same" or any(padding)
