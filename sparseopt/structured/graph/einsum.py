"""Writes calls of ``einsum`` in a graph as the products that they compute."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx

from sparseopt.structured.graph.tracing import Trace, arguments, operator_name

__all__ = ["with_products"]

_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


def with_products(trace: Trace) -> Trace:
    """Replace each ``einsum`` of a graph by the operators that torch computes it with.

    Returns:
        The same trace, whose graph has changed in place.
    """
    graph = trace.module.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and operator_name(node) == "einsum":
            _replace(graph, node)
    return trace


def _replace(graph: Graph, node: Node) -> None:
    """Copy the operators of one ``einsum`` into ``graph``, with the shapes and the module of it."""
    given = arguments(node)
    operands = given["tensors"]

    def compute(*tensors: Tensor) -> Tensor:
        result: Tensor = torch.ops.aten.einsum(given["equation"], tensors, path=given["path"])
        return result

    products = make_fx(compute)(*(operand.meta["val"] for operand in operands)).graph
    copies = dict(zip(products.find_nodes(op="placeholder"), operands, strict=True))
    (output,) = products.output_node().all_input_nodes
    with graph.inserting_before(node):
        for product in products.nodes:
            if product.op == "call_function":
                copies[product] = graph.node_copy(product, copies.__getitem__)
                copies[product].meta = {**node.meta, "val": product.meta["val"]}
                if product.target in _VIEWS:
                    # A reshape, because other values of these shapes may have other strides.
                    copies[product].target = torch.ops.aten.reshape.default
    node.replace_all_uses_with(copies[output])
    graph.erase_node(node)
