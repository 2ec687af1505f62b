"""Traces a model whose code depends on which arguments it gets.

A trace passes a proxy for each argument, and a proxy is never ``None``, so ``if mask is None:`` is
always false in a trace. Algorithm: trace the model with proxies, and again with ``None`` in place
of each argument, and of all optional arguments. If two graphs differ in more than this, the code
depends on the argument. Then the graph is made for the arguments of the example inputs, and raises
an error in calls that have the argument where the example inputs have ``None``, or the reverse.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from operator import attrgetter
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from sparseopt.speedup.inference.attention import OpeningTracer

__all__ = ["RequiredArgument", "trace"]

_NAMED: Final = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class RequiredArgument(nn.Module):
    """Raises an error if an argument is given and was not in the example inputs, or the reverse.

    Args:
        name: the name of the argument.
        given: whether the example inputs have the argument.
    """

    #: Its call stays in a graph that does not use its result.
    _is_impure = True

    def __init__(self, name: str, given: bool) -> None:
        super().__init__()
        self.name = name
        self.given = given

    def forward(self, value: Any) -> None:
        """Check one call.

        Raises:
            ValueError: if one of the two has the argument, and the other has not.
        """
        if (value is not None) != self.given:
            raise ValueError(
                f"{self.name}={'None' if self.given else '...'} differs from the example inputs, "
                f"which {'had' if self.given else 'left out'} {self.name}, and the model's code "
                "depends on it. For calls of this kind, condense the model again with example "
                f"inputs that {'leave it out' if self.given else 'have it'}."
            )


def trace(model: nn.Module, arguments: Mapping[str, Any]) -> fx.GraphModule:
    """Return a model's graph with its modules, with the layers inside torch's encoders if possible.

    Args:
        model: the model, in evaluation mode.
        arguments: the example inputs, by name of the argument.
    """
    parameters = inspect.signature(model.forward).parameters
    named = {name for name, one in parameters.items() if one.kind in _NAMED and name in arguments}
    optional = {name for name in named if parameters[name].default is None}
    left_out = {name for name in named if arguments[name] is None}
    without: set[str] = set()
    try:
        graph = _graph(model, without)
    except Exception:
        if not left_out:
            raise
        # Code for an argument that is given may be impossible to trace.
        without = left_out
        graph = _graph(model, without)
    decisive = set(without)
    for name in named - without:
        if _differs(model, graph, without, {name}, required=name not in optional):
            decisive.add(name)
    if not optional <= decisive and _differs(model, graph, without, optional):
        decisive |= optional
    if decisive & left_out != without:
        graph = _graph(model, decisive & left_out)
    traced = fx.GraphModule(model, graph)
    _require(traced, decisive, left_out)
    return traced


def _require(traced: fx.GraphModule, decisive: set[str], left_out: set[str]) -> None:
    """Check the arguments that the code depends on in each call of the graph."""
    for node in [one for one in traced.graph.nodes if one.op == "placeholder"]:
        name = str(node.target)
        if name in decisive:
            traced.add_submodule(f"require_{name}", RequiredArgument(name, name not in left_out))
            with traced.graph.inserting_after(node):
                traced.graph.call_module(f"require_{name}", (node,))


def _differs(
    model: nn.Module,
    graph: fx.Graph,
    without: set[str],
    names: set[str],
    *,
    required: bool = False,
) -> bool:
    """Whether a model computes something else if some arguments are ``None``.

    Args:
        model: the model.
        graph: its graph without the arguments in ``without``.
        without: arguments that are ``None`` in both graphs.
        names: the arguments that are ``None`` in one graph only.
        required: whether the model can't be called without the arguments, so that an error of the
            trace without them says nothing.
    """
    try:
        other = _graph(model, without | names)
    except Exception:
        return not required
    return list(_operations(model, other, names)) != list(_operations(model, graph, names))


def _operations(model: nn.Module, graph: fx.Graph, left_out: set[str]) -> Iterator[str]:
    """Yield the operations of a graph and their arguments, with ``None`` for some arguments."""
    names: dict[fx.Node, str | None] = {}
    own = {id(one) for one in (*model.parameters(), *model.buffers())}
    count = 0
    for node in graph.nodes:
        if node.op == "placeholder":
            names[node] = None if node.target in left_out else str(node.target)
        elif node.op == "get_attr":
            value = attrgetter(str(node.target))(model)
            names[node] = f"object {id(value)}" if id(value) in own else _content(value)
        else:
            names[node] = f"operation {count}"
            count += 1
            arguments = fx.map_arg((node.args, node.kwargs), names.__getitem__)
            yield f"{node.op} {node.target} {arguments}"


def _content(constant: object) -> str:
    """Return a text that is the same for constants of equal values: each trace makes them again."""
    if not isinstance(constant, Tensor) or constant.is_meta or constant.layout is not torch.strided:
        return f"object {id(constant)}"
    numbers = constant.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return (
        f"{constant.dtype} {tuple(constant.shape)} {hashlib.sha256(numbers.tobytes()).hexdigest()}"
    )


def _graph(model: nn.Module, left_out: set[str]) -> fx.Graph:
    """Return a graph with ``None`` in place of some arguments, which keep their placeholders."""
    concrete: dict[str, Any] = dict.fromkeys(left_out)
    try:
        graph = OpeningTracer().trace(model, concrete)
    # An encoder's activation may be any function, and its arguments may be computed.
    except Exception:
        graph = fx.Tracer().trace(model, concrete)
    known = inspect.signature(model.forward).parameters
    for node in [one for one in graph.nodes if one.op == "placeholder"]:
        name = str(node.target).removesuffix("_1")
        # torch renames the placeholders of these arguments, and checks that they are None.
        if str(node.target) not in known and name in left_out:
            node.target = name
            for check in list(node.users):
                graph.erase_node(check)
    return graph
