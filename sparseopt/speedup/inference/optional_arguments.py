"""Traces a model whose code depends on which optional arguments it gets.

A trace passes a proxy for each argument, and a proxy is never ``None``, so ``if mask is None:`` is
always false in a trace. Algorithm: trace the model once with all proxies, and once more for each
optional argument with ``None`` in its place. If the two graphs differ in more than this argument,
the code depends on it. Then the graph is made for the arguments of the example inputs, and raises
an error in calls that give the argument where the example inputs left it out, or the reverse.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import fx, nn
from torch.fx.node import has_side_effect

from sparseopt.speedup.inference.attention import OpeningTracer

__all__ = ["graph_of"]


def graph_of(model: nn.Module, arguments: Mapping[str, Any]) -> fx.Graph:
    """Return the graph of a model, with the layers inside torch's encoders if possible.

    Args:
        model: the model, in evaluation mode.
        arguments: the example inputs, by name of the argument.
    """
    optional = [
        name
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.default is None and name in arguments
    ]
    left_out = {name for name in optional if arguments[name] is None}
    try:
        graph = _traced(model, set())
    except Exception:
        if not left_out:
            raise
        # Code for an argument that is given may be impossible to trace.
        decisive = left_out
    else:
        decisive = {name for name in optional if _decides(name, model, graph)}
        if not decisive:
            return graph
    graph = _traced(model, decisive & left_out)
    for node in [node for node in graph.nodes if node.op == "placeholder"]:
        if node.target in decisive:
            with graph.inserting_after(node):
                given = node.target not in left_out
                graph.call_function(require_as_in_example, (node, node.target, given))
    return graph


def _decides(name: str, model: nn.Module, graph: fx.Graph) -> bool:
    """Whether a model computes something else if an argument is ``None``."""
    try:
        other = _traced(model, {name})
    except Exception:
        return True
    return _operations(other, name) != _operations(graph, name)


def _operations(graph: fx.Graph, left_out: str) -> list[str]:
    """Return the operations of a graph and their arguments, with ``None`` for one argument."""
    names: dict[fx.Node, str] = {}
    found: list[str] = []

    def named(node: fx.Node) -> str | None:
        is_left_out = node.op == "placeholder" and node.target == left_out
        return None if is_left_out else names[node]

    for node in graph.nodes:
        if node.op == "placeholder":
            names[node] = str(node.target)
        elif node.op == "get_attr":
            names[node] = "a tensor"  # it has another name in each trace
        else:
            names[node] = f"operation {len(found)}"
            arguments = fx.map_arg((node.args, node.kwargs), named)
            found.append(f"{node.op} {node.target} {arguments}")
    return found


def _traced(model: nn.Module, left_out: set[str]) -> fx.Graph:
    """Return a graph with ``None`` in place of some arguments, which keep their placeholders."""
    concrete: dict[str, Any] = dict.fromkeys(left_out)
    try:
        graph = OpeningTracer().trace(model, concrete)
    # An encoder's activation may be any function, and its arguments may be computed.
    except Exception:
        graph = fx.Tracer().trace(model, concrete)
    for node in list(graph.nodes):
        if node.op == "placeholder" and str(node.target)[: -len("_1")] in left_out:
            node.target = str(node.target)[: -len("_1")]
            for check in list(node.users):
                graph.erase_node(check)
    return graph


@has_side_effect
def require_as_in_example(value: Any, name: str, given: bool) -> None:
    """Raise an error if an argument is given and was not in the example inputs, or the reverse.

    Raises:
        ValueError: if it is so.
    """
    if (value is not None) != given:
        raise ValueError(
            f"{name}={'None' if given else '...'} differs from the example inputs, which "
            f"{'had' if given else 'left out'} {name}, and the model's code depends on it. "
            f"Condense the model again with example inputs that "
            f"{'leave it out' if given else 'have it'}, for calls of this kind."
        )
