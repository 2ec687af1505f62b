"""Rules of operators that sum over channels: convolutions, linear maps, matrix products."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from torch import nn
from torch.fx import Node

from sparseopt.structured.graph.atoms import Labels, Positions
from sparseopt.structured.graph.calls import Call, Contraction, rule_for

__all__: list[str] = []


@rule_for("linear")
def _linear(call: Call) -> Labels:
    weight, bias = call.arguments["weight"], call.arguments["bias"]
    operand = call.arguments["input"]
    *leading, _ = call.labels(operand)
    _contract(call, (operand, len(leading)), (weight, 1), padded=False)
    rows = _produced(call, weight, 0, bias)
    return (*leading, rows)


@rule_for("conv1d", "conv2d", "conv3d")
def _convolution(call: Call) -> Labels:
    """A sum over the channels of the input, once for each filter.

    Without groups, the input's channels and the columns of the weight are coupled in a contraction,
    and the filters get new atoms for the output. With groups, everything in a group is coupled, so
    that only full groups can go.
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
    """As a convolution, with filters and columns of the weight exchanged.

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
    left, right = (node for node in call.node.args if isinstance(node, Node))
    of_left, of_right = call.labels(left), call.labels(right)
    if len(of_left) < 2 or len(of_right) < 2:
        for argument in (left, right):
            call.block_all(argument, "multiplies them by a vector")
        return (None,) * len(call.shape())
    channels, weight = (left, len(of_left) - 1), (right, len(of_right) - 2)
    if call.labelling.source(right) is None and call.labelling.source(left) is not None:
        channels, weight = weight, channels
        call.role(left, len(of_left) - 2, "producer")
    _contract(call, channels, weight, padded=False)
    call.role(right, len(of_right) - 1, "producer")
    batch = _batch_dims(call, of_left[:-2], of_right[:-2])
    return (*batch, of_left[-2], of_right[-1])


@rule_for("addmm")
def _product_and_sum(call: Call) -> Labels:
    """A matrix product plus a bias; a matrix in place of the bias blocks what it is added to."""
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

    Invariant: every place where channels are summed over is in ``labelling.contractions``, or its
    channels are blocked. Constant propagation and removal rely on this.
    """
    along_operand = call.labels(operand[0])[operand[1]]
    along_weight = call.labels(weight[0])[weight[1]]
    call.role(*weight, "consumer")
    call.role(*operand, "elementwise")
    if call.labelling.trace.is_made_by(call.node, nn.MultiheadAttention):
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


def _produced(call: Call, weight: Node, dim: int, bias: Node | None) -> Positions | None:
    rows = call.labels(weight)[dim]
    call.role(weight, dim, "producer")
    call.join_all(rows, (bias, "bias"))
    return rows


def _tie_groups(call: Call, channels: Positions | None, of_weight: Positions | None) -> None:
    """Couple all that goes into one group of a grouped convolution and all that comes out of it.

    A group is the smallest unit: all groups have the same number of channels.
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
    """Return atoms of a transposed grouped convolution's results, which its weight has none of."""
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


def _batch_dims(call: Call, left: Labels, right: Labels) -> Labels:
    """Block what a batched product is repeated over, on either side."""
    for atoms in itertools.chain(left, right):
        call.block(atoms, "repeats a product over them")
    return (None,) * max(len(left), len(right))


def _any(padding: Any) -> bool:
    return padding == "same" or any(padding)
