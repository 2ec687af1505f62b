"""Finds the channels along each dimension of every tensor in a graph, operator by operator."""

from __future__ import annotations

import operator

import torch
from torch import Tensor
from torch.fx import Node

# Imported for their rules.
from sparseopt.structured.graph import contractions, movement, normalisation, spatial  # noqa: F401
from sparseopt.structured.graph.atoms import CoupledIndices
from sparseopt.structured.graph.calls import Call, Labelled, Labelling, Roles, find_rule
from sparseopt.structured.graph.elementwise import is_placed_by_number, is_pointwise, pointwise
from sparseopt.structured.graph.tracing import Trace, only_checks, operator_name, where

__all__ = ["label"]


def label(trace: Trace, atoms: CoupledIndices, roles: Roles) -> Labelling:
    """Label every node of a graph: couple atoms that belong together, block those that must stay.

    Nodes are visited in the order of the graph, so the labels of a call's arguments are known. An
    operator without a rule blocks all its arguments. So nothing is removed on an assumption.

    Args:
        trace: the graph.
        atoms: the atoms to couple and block; the graphs of one model share them.
        roles: the roles of dimensions of parameters and buffers, by name and dimension; this adds
            to them.
    """
    labelling = Labelling(trace, atoms, roles)
    for node in trace.module.graph.nodes:
        if node.op == "placeholder":
            labelling.set(node, _placeholder(node, labelling))
        elif node.op == "output":
            for result in node.all_input_nodes:
                if result not in trace.tensors:
                    _block_all(labelling, result, "they are outputs of the model")
        elif node.target is operator.getitem:
            source, index = node.args
            labelling.set(node, labelling.each(source)[index])
        else:
            labelling.set(node, _of_call(node, labelling))
    return labelling


def _of_call(node: Node, labelling: Labelling) -> Labelled:
    """Return the labels of a call's result, by the rule of its operator.

    An operator without a rule blocks all its arguments, unless it only asserts something. So does a
    number that decides which values are used, because it may be another for another input.
    """
    if only_checks(node):
        return ()
    why = "an operator that is not known"
    if isinstance(node.target, torch._ops.OpOverload):
        rule = find_rule(operator_name(node)) or (pointwise if is_pointwise(node) else None)
        if rule is not None and not is_placed_by_number(node):
            return rule(Call(node, labelling))
        if rule is not None:
            why = "with a number that is computed from tensors"
    reason = f"{where(node)} passes them to {operator_name(node)!r}, {why}"
    for argument in node.all_input_nodes:
        _block_all(labelling, argument, reason)
    return _unlabelled(node)


def _placeholder(node: Node, labelling: Labelling) -> Labelled:
    name = labelling.trace.tensors.get(node)
    if name is None:
        return _unlabelled(node)
    return labelling.atoms.of_tensor(name, tuple(node.meta["val"].shape))


def _block_all(labelling: Labelling, node: Node, reason: str) -> None:
    for labels in labelling.each(node):
        for atoms in labels:
            labelling.atoms.block(atoms, reason)


def _unlabelled(node: Node) -> Labelled:
    value = node.meta.get("val")
    if isinstance(value, (list, tuple)):
        return [(None,) * item.dim() if isinstance(item, Tensor) else () for item in value]
    return (None,) * value.dim() if isinstance(value, Tensor) else ()
