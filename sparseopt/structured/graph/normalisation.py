"""Rules of normalisations, and of other operators that take a statistic along dimensions."""

from __future__ import annotations

from torch.fx import Node

from sparseopt.structured.graph.atoms import Labels, without_dims
from sparseopt.structured.graph.calls import Call, rule_for

__all__: list[str] = []


@rule_for("batch_norm", "instance_norm")
def _by_channel(call: Call) -> Labels:
    """Couple the channels with the scale, shift and statistics of their normalisation."""
    labels = call.labels(call.arguments["input"])
    call.join_all(
        labels[1],
        (call.arguments["weight"], "scale"),
        (call.arguments["bias"], "shift"),
        (call.arguments["running_mean"], "mean"),
        (call.arguments["running_var"], "variance"),
    )
    return labels


@rule_for("group_norm")
def _over_groups_of_channels(call: Call) -> Labels:
    labels = call.labels(call.arguments["input"])
    call.block(labels[1], "normalises over groups of them")
    call.join_all(labels[1], (call.arguments["weight"], "scale"), (call.arguments["bias"], "shift"))
    return labels


@rule_for("layer_norm", "rms_norm")
def _over_last_dims(call: Call) -> Labels:
    """Block the dimensions over which the statistics are taken, and couple their scale and shift.

    Other dimensions keep their atoms, such as heads before a normalisation of each head.
    """
    rank = len(call.shape())
    first = rank - len(call.arguments["normalized_shape"])
    labels = call.labels_and_grids(call.arguments["input"], settled=range(first, rank))
    for dim in range(first, len(labels)):
        call.block(labels[dim], "normalises over them")
        for name, role in (("weight", "scale"), ("bias", "shift")):
            vector = call.arguments.get(name)
            if isinstance(vector, Node):
                call.join(labels[dim], call.labels(vector)[dim - first])
                call.role(vector, dim - first, role)
    return labels


@rule_for("softmax", "log_softmax", "_softmax", "_log_softmax")
def _over_one_dim(call: Call) -> Labels:
    dim = call.arguments["dim"] % max(1, len(call.shape()))
    labels = call.labels_and_grids(call.arguments["self"], settled=[dim])
    call.block(labels[dim], "takes a softmax over them")
    return labels


@rule_for("mean", "sum", "amax", "amin")
def _reduction(call: Call) -> Labels:
    """Block the dimensions that are reduced; the others keep their atoms."""
    operand = call.arguments["self"]
    rank = len(call.shape(operand))
    dims = call.arguments.get("dim")
    if dims is None or dims == []:
        dims = range(rank)
    dims = {dim % rank for dim in ([dims] if isinstance(dims, int) else dims)}
    labels = call.labels_and_grids(operand, settled=sorted(dims))
    for dim in dims:
        call.block(labels[dim], f"takes their {call.name}")
    if call.arguments.get("keepdim"):
        return tuple(None if dim in dims else atoms for dim, atoms in enumerate(labels))
    return without_dims(labels, dims)
