"""Traces a model whose code depends on which arguments it gets.

A trace passes a proxy for each argument, and a proxy is never ``None``, ``True`` or a float, so
code that asks for this is traced wrongly. Algorithm:

1. Trace the model with a proxy for each tensor, container and ``None``, and with the values
   themselves for numbers, flags and texts. A number gets a proxy too if the graph stays the same.
2. Trace it again with ``None`` in place of each proxy and of all optional arguments, and with
   values of other types in place of each ``None``. If two graphs differ in more than this, the code
   depends on the argument. A ``None`` that it depends on is traced as it is.
3. Check in each call of the graph that each argument is as in the example inputs, except for the
   values of tensors, or is of a type that step 2 has found to give the same graph.
4. Trace it once more. If the graph differs, it has random numbers as constants.
"""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections.abc import Collection, Iterator, Mapping
from operator import attrgetter
from types import NoneType
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from sparseopt.speedup.inference.attention import OpeningTracer
from sparseopt.utils.probe import preserve_random_state

__all__ = ["RequiredArgument", "trace"]

_NAMED: Final = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_PLAIN: Final = (
    *(bool, int, float, complex, str, bytes),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)
_NUMBERS: Final = (int, float)
#: For each type that may be given instead of ``None``, values to trace. Both flags are traced,
#: because code may ask for one of them only.
_PROBES: Final[Mapping[type, tuple[Any, ...]]] = {
    Tensor: (torch.full((1,), 0.5, device="cpu"),),
    float: (0.5,),
    int: (3,),
    bool: (True, False),
}
#: How often a model that draws random numbers is traced, because they may decide between branches.
_TRACES_OF_RANDOM: Final = 8


class RequiredArgument(nn.Module):
    """Raises an error if an argument differs from the example inputs in more than tensors' values.

    Args:
        name: the name of the argument.
        kind: what the example inputs have; see :func:`kind_of`.
        types: the types that are taken besides, whatever the value.
    """

    #: Its call stays in a graph that does not use its result.
    _is_impure = True

    def __init__(self, name: str, kind: str, types: Collection[type]) -> None:
        super().__init__()
        self.name = name
        self.kind = kind
        self.types = frozenset(types)

    def forward(self, value: Any) -> None:
        """Check one call.

        Raises:
            ValueError: if the argument differs.
        """
        if (Tensor if isinstance(value, Tensor) else type(value)) in self.types:
            return
        kind = kind_of(value)
        if kind != self.kind:
            raise ValueError(
                f"{self.name}={kind or type(value).__qualname__} differs from the example inputs, "
                f"which had {self.name}={self.kind}, and the model's code may depend on it. For "
                "calls of this kind, condense the model again with example inputs like them."
            )


def kind_of(value: Any) -> str | None:
    """Return a text that is the same for two values if only tensors in them differ.

    ``None`` for objects that the text can't describe.

    Example:
        >>> kind_of((torch.ones(2), {"scale": 0.5, "mask": None}))
        "tuple(tensor, dict('mask': None, 'scale': 0.5))"
    """
    if isinstance(value, Tensor):
        return "tensor"
    kind = type(value)
    if value is None or kind in _PLAIN:
        return repr(value)
    parts: list[str | None]
    if kind in {list, tuple, torch.Size} or (isinstance(value, tuple) and hasattr(kind, "_fields")):
        parts = [kind_of(one) for one in value]
    elif kind is dict and all(type(key) in _PLAIN for key in value):
        parts = [
            None if (part := kind_of(one)) is None else f"{key!r}: {part}"
            for key, one in sorted(value.items(), key=lambda item: repr(item[0]))
        ]
    else:
        return None
    known = [part for part in parts if part is not None]
    return f"{kind.__qualname__}({', '.join(known)})" if len(known) == len(parts) else None


def trace(model: nn.Module, arguments: Mapping[str, Any]) -> fx.GraphModule:
    """Return a model's graph with its modules, with the layers inside torch's encoders if possible.

    Args:
        model: the model, in evaluation mode.
        arguments: the example inputs, by name of the argument.

    Raises:
        ValueError: if an argument holds an object that the graph could not check, or if the code
            draws random numbers that the graph would repeat.
    """
    kinds: dict[str, str] = {}
    for name, value in arguments.items():
        kind = kind_of(value)
        if kind is None:
            raise ValueError(
                f"{name} is or holds an object that calls can't be compared with "
                f"({type(value).__qualname__}); only tensors, numbers, texts, None, and lists, "
                "tuples and dicts of them can be"
            )
        kinds[name] = kind
    parameters = inspect.signature(model.forward).parameters
    named = [name for name, one in parameters.items() if one.kind in _NAMED and name in arguments]
    search = _Search(
        model,
        {name: arguments[name] for name in named},
        [name for name in named if parameters[name].default is None],
    )
    with preserve_random_state(model):
        search.run()
    _require(search.traced, kinds, search.types)
    return search.traced


class _Search:
    """Finds the graph of a model, and the types that each argument may have in its calls.

    Args:
        model: the model.
        arguments: the example inputs, by name of the argument.
        optional: the arguments that are ``None`` by default.

    Attributes:
        values: the arguments that the graph is traced with a value for, in place of a proxy.
        types: for each argument, the types that it may have besides its kind.
        traced: the graph with its modules.
    """

    def __init__(
        self, model: nn.Module, arguments: Mapping[str, Any], optional: Collection[str]
    ) -> None:
        self.model = model
        self.arguments = arguments
        self.optional = optional
        self.left_out = [name for name, value in arguments.items() if value is None]
        self.numbers = [name for name, value in arguments.items() if type(value) in _NUMBERS]
        self.values = {name: one for name, one in arguments.items() if type(one) in _PLAIN}
        self.types: dict[str, set[type]] = {name: set() for name in arguments}

    def run(self) -> None:
        """Find all; the module's docstring has the steps."""
        try:
            self.traced = self._graph(self.values)
        except Exception:
            if not self.left_out:
                raise
            # Code for an argument that is given may be impossible to trace.
            self.values |= dict.fromkeys(self.left_out)
            self.traced = self._graph(self.values)
        for name in self.numbers:
            self._free_number(name)
        self._free_optional()
        self._check_repeats()

    def _free_number(self, name: str) -> None:
        """Give a number a proxy if the model only computes with it."""
        value, fixed = self.values.pop(name), self.traced
        probes = {**{kind: _PROBES[kind] for kind in _NUMBERS}, type(value): (value,)}
        try:
            self.traced = self._graph(self.values)
        except Exception:
            self.values[name] = value
            return
        self.types[name] |= self._types(name, probes)
        if type(value) not in self.types[name]:
            self.types[name].clear()
            self.traced, self.values[name] = fixed, value

    def _free_optional(self) -> None:
        """Find the arguments that may be ``None`` or not in calls of the graph."""
        proxies = self.arguments.keys() - self.values.keys()
        optional = proxies & set(self.optional)
        free = {name for name in proxies if self._is_same({name: None})}
        if free & optional and not self._is_same(dict.fromkeys(optional)):
            free -= optional
        for name in free:
            self.types[name].add(NoneType)
        decisive = (proxies - free).intersection(self.left_out)
        if decisive:
            self.values |= dict.fromkeys(decisive)
            self.traced = self._graph(self.values)
        for name in free.intersection(self.left_out):
            self.types[name] |= self._types(name, _PROBES)

    def _check_repeats(self) -> None:
        """Check that the graph is the same whatever random numbers the model draws.

        Raises:
            ValueError: if it is not.
        """
        for _ in range(_TRACES_OF_RANDOM):
            before = torch.get_rng_state()
            if not self._is_same({}):
                raise ValueError("forward() does something else in each call, as with random noise")
            if torch.equal(before, torch.get_rng_state()):
                return

    def _types(self, name: str, probes: Mapping[type, tuple[Any, ...]]) -> set[type]:
        """Return the types whose values give the same graph in place of an argument's proxy."""
        return {
            kind
            for kind, values in probes.items()
            if all(self._is_same({name: value}) for value in values)
        }

    def _is_same(self, values: Mapping[str, Any]) -> bool:
        """Whether the model computes the same with these values in place of proxies."""
        try:
            other = self._graph({**self.values, **values})
            found = list(_operations(self.model, other, values))
            return found == list(_operations(self.model, self.traced, values))
        except Exception:
            return False

    def _graph(self, values: Mapping[str, Any]) -> fx.GraphModule:
        return _graph(self.model, values, {*self.left_out, *self.numbers})


def _require(
    traced: fx.GraphModule, kinds: Mapping[str, str], types: Mapping[str, Collection[type]]
) -> None:
    """Check the arguments in each call of the graph."""
    for node in [one for one in traced.graph.nodes if one.op == "placeholder"]:
        name = str(node.target)
        if name in types:
            check = RequiredArgument(name, kinds[name], types[name])
            traced.add_submodule(f"require_{name}", check)
            with traced.graph.inserting_after(node):
                traced.graph.call_module(f"require_{name}", (node,))


def _operations(
    model: nn.Module, traced: fx.GraphModule, values: Mapping[str, Any]
) -> Iterator[str]:
    """Yield the operations of a graph and their arguments, with values for some arguments.

    What only depends on these values is computed, as in a trace with the values.
    """
    names: dict[fx.Node, Any] = {}
    known: set[fx.Node] = set()
    own = {id(one) for one in (*model.parameters(), *model.buffers())}
    count = 0
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            value = values.get(str(node.target), str(node.target))
            names[node] = _content(value) if isinstance(value, Tensor) else value
            if type(value) in _NUMBERS and node.target in values:
                known.add(node)
        elif node.op == "get_attr":
            value = attrgetter(str(node.target))(traced)
            names[node] = f"object {id(value)}" if id(value) in own else _content(value)
        else:
            arguments = fx.map_arg((node.args, node.kwargs), names.__getitem__)
            is_known = node.all_input_nodes and known.issuperset(node.all_input_nodes)
            if is_known and node.op == "call_function":
                names[node] = node.target(*arguments[0], **arguments[1])
                known.add(node)
                continue
            names[node] = f"operation {count}"
            count += 1
            yield f"{node.op} {node.target} {arguments}"


def _content(constant: object) -> str:
    """Return a text that is the same for constants of equal values: each trace makes them again."""
    if not isinstance(constant, Tensor) or constant.is_meta or constant.layout is not torch.strided:
        return f"object {id(constant)}"
    numbers = constant.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return (
        f"{constant.dtype} {tuple(constant.shape)} {hashlib.sha256(numbers.tobytes()).hexdigest()}"
    )


class _Proxy(fx.Proxy):
    """A proxy that can't be looked up or written into a text if it may stand for a number.

    A dict would not find it, and a name such as ``f"layer{step}"`` would be wrong.
    """

    def __hash__(self) -> int:
        self._check_is_no_number()
        return id(self)

    def __str__(self) -> str:
        self._check_is_no_number()
        return repr(self)

    def _check_is_no_number(self) -> None:
        assert isinstance(self.tracer, _Proxies)
        rest, seen = [self.node], {self.node}
        while rest:
            node = rest.pop()
            if node.op == "placeholder" and node.target in self.tracer.numbers:
                raise TypeError(f"the code depends on the value of {node.target}")
            new = set(node.all_input_nodes) - seen
            seen |= new
            rest += new


class _Proxies(fx.Tracer):
    """Makes proxies of this file; ``numbers`` are the arguments that may be numbers in calls."""

    numbers: Collection[str] = ()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return the proxy for the result of a node."""
        return _Proxy(node, self)


class _OpeningProxies(_Proxies, OpeningTracer):
    """Makes these proxies, and traces torch's encoders by their definition."""


def _graph(model: nn.Module, values: Mapping[str, Any], numbers: Collection[str]) -> fx.GraphModule:
    """Return a graph with values in place of some arguments, which keep their placeholders.

    Args:
        model: the model.
        values: the values, by name of the argument.
        numbers: the other arguments that may be numbers in calls.
    """
    tracer: _Proxies = _OpeningProxies()
    try:
        graph = _traced_by(tracer, model, values, numbers)
    # An encoder's activation may be any function, and its arguments may be computed.
    except Exception:
        tracer = _Proxies()
        graph = _traced_by(tracer, model, values, numbers)
    known = inspect.signature(model.forward).parameters
    for node in [one for one in graph.nodes if one.op == "placeholder"]:
        name = str(node.target).removesuffix("_1")
        # torch renames the placeholders of these arguments, and checks their values.
        if str(node.target) not in known and name in values:
            node.target = name
            _erase_users(graph, node)
    return fx.GraphModule(tracer.root, graph)


def _traced_by(
    tracer: _Proxies, model: nn.Module, values: Mapping[str, Any], numbers: Collection[str]
) -> fx.Graph:
    tracer.numbers = numbers
    with warnings.catch_warnings():
        # torch says that it does not check the values of some types.
        warnings.filterwarnings("ignore", "Was not able to add assertion")
        return tracer.trace(model, dict(values))


def _erase_users(graph: fx.Graph, node: fx.Node) -> None:
    for user in list(node.users):
        _erase_users(graph, user)
        graph.erase_node(user)
