"""A model taken apart for inference: its layers, and a copy of it with others in their places.

If ``torch.fx`` can trace the model, the copy is its graph, simplified:

1. dropout and identities go, and attention becomes two linear layers and what is between them;
2. a BatchNorm is folded into the convolution that alone it reads;
3. an addition is computed by the convolution that it alone reads, if the other operand is known by
   then: of two operands the one that is computed last;
4. ReLU and ReLU6 are computed by the layer that they alone read, or by a BatchNorm that is left.

Invariant: each step replaces nodes by one that has the same value. If the model can't be traced,
the copy is a deep copy, in which layers are exchanged one by one and nothing is folded.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sparseopt.speedup.inference.attention import split_attention
from sparseopt.speedup.inference.dense_layers import Affine, KernelLayoutPool
from sparseopt.speedup.inference.live_layers import (
    Bounds,
    InKernelLayout,
    LiveConv2d,
    NormStatistics,
    Origin,
)
from sparseopt.speedup.live_training.layer_state import convolution_padding
from sparseopt.utils.wrappers import canonical_name

__all__ = ["ModuleNetwork", "Network", "Site", "take_apart"]

POOLS: Final = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_POOL_FUNCTIONS: Final[dict[Any, type[nn.Module]]] = {
    F.adaptive_avg_pool2d: nn.AdaptiveAvgPool2d,
    F.max_pool2d: nn.MaxPool2d,
    F.avg_pool2d: nn.AvgPool2d,
}
_ADDITIONS: Final = {operator.add, operator.iadd, torch.add}
_RELU: Final = (0.0, float("inf"))
_RELU6: Final = (0.0, 6.0)
_CLAMPS: Final[dict[Any, tuple[float, float]]] = {
    nn.ReLU: _RELU,
    nn.ReLU6: _RELU6,
    F.relu: _RELU,
    F.relu_: _RELU,
    torch.relu: _RELU,
    torch.relu_: _RELU,
    F.relu6: _RELU6,
    "relu": _RELU,
    "relu_": _RELU,
}


@dataclass
class Site:
    """A place of a convolution or linear layer in the model.

    Attributes:
        name: path of the module.
        module: the layer that is there.
        origin: the names of its parameters, and of the BatchNorm that is folded in.
        norm: that BatchNorm.
        bounds: what its results are clamped to.
        inputs: what it was given, the residual last; of several calls the last.
    """

    name: str
    module: nn.Conv2d | nn.Linear
    origin: Origin
    norm: NormStatistics | None = None
    bounds: Bounds = None
    inputs: tuple[Tensor, ...] = ()


@dataclass
class Network:
    """A traced model.

    Attributes:
        graph: its graph, simplified.
        targets: modules, parameters and buffers that the graph refers to, by path.
        sites: the layers, in the order of the graph.
    """

    graph: fx.Graph
    targets: dict[str, Any]
    sites: dict[str, Site]
    affine: dict[str, Affine] = field(default_factory=dict)

    def build(self, layers: Mapping[str, nn.Module], dtype: torch.dtype | None = None) -> nn.Module:
        """Return the model with these layers at their sites; the others' are shared.

        Args:
            layers: a layer for each site, by path.
            dtype: the number format that everything else is converted to.
        """
        others = {path: one for path, one in self.targets.items() if path not in layers}
        if dtype is not None:
            others = {path: _converted(one, dtype) for path, one in others.items()}
        graph, conversions = _with_conversions(self.graph, layers)
        return fx.GraphModule({**others, **layers, **conversions}, graph, "Condensed").eval()


@dataclass
class ModuleNetwork:
    """A model that can't be traced; see :class:`Network`."""

    model: nn.Module
    sites: dict[str, Site]

    def build(self, layers: Mapping[str, nn.Module], dtype: torch.dtype | None = None) -> nn.Module:
        """Return a copy of the model with these layers at their sites."""
        memo: dict[int, Any] = {
            id(self.model.get_submodule(path)): layer for path, layer in layers.items()
        }
        copied = copy.deepcopy(self.model, memo)
        for path, module in list(copied.named_modules()):
            if type(module) in POOLS:
                parent, _, last = path.rpartition(".")
                setattr(copied.get_submodule(parent), last, KernelLayoutPool(module))
        return (copied if dtype is None else copied.to(dtype)).eval()


def take_apart(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Network | ModuleNetwork, str | None]:
    """Take a model in evaluation mode apart; nothing of it is changed.

    Args:
        model: the model.
        args: positional inputs, which it is run on.
        kwargs: keyword inputs.

    Returns:
        The network, and why it could not be traced, or ``None``.
    """
    try:
        return _traced(model, args, kwargs), None
    # Whatever a model's code makes of proxies in the place of tensors.
    except Exception as error:
        sites = {
            name: Site(name, module, _origin(name, module))
            for name, module in model.named_modules()
            if _is_layer(module)
        }
        network = ModuleNetwork(model, sites)
        _note_inputs(network, args, kwargs)
        reason = str(error).partition("\n")[0]
        return network, f"{type(error).__name__}: {reason}"


def _is_layer(module: nn.Module) -> bool:
    """Whether a layer of exactly torch's class can be exchanged; others may compute otherwise."""
    if type(module) is nn.Linear:
        return True
    return (
        type(module) is nn.Conv2d
        and module.padding_mode == "zeros"
        and convolution_padding(module) is not None
    )


def _origin(name: str, module: nn.Module) -> Origin:
    path = canonical_name(f"{name}.weight" if name else "weight").removesuffix("weight")
    has_bias = module._parameters["bias"] is not None
    return Origin(f"{path}weight", f"{path}bias" if has_bias else None)


def _note_inputs(network: ModuleNetwork, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    def note(site: Site) -> Any:
        def hook(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            site.inputs = (given[0] if given else named["input"],)

        return hook

    handles = [
        site.module.register_forward_pre_hook(note(site), with_kwargs=True)
        for site in network.sites.values()
    ]
    try:
        with torch.no_grad():
            network.model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()


def _traced(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Network:
    traced = fx.symbolic_trace(model)
    origins = split_attention(traced)
    traced.recompile()
    positional = _positional(model, traced.graph, args, kwargs)
    shapes = _Shapes(traced)
    with torch.no_grad():
        shapes.run(*positional)
    graph = traced.graph
    _drop_identities(graph, traced)
    network = Network(graph, {}, {})
    for node in graph.nodes:
        if node.op == "call_module":
            module = traced.get_submodule(node.target)
            if _is_layer(module):
                origin = origins.get(node.target) or _origin(node.target, module)
                network.sites.setdefault(node.target, Site(node.target, module, origin))  # type: ignore[arg-type]
            elif type(module) in POOLS:
                traced.set_submodule(node.target, KernelLayoutPool(module))
        elif node.op == "call_function" and node.target in _POOL_FUNCTIONS:
            _pool_by_module(node, traced)
    _Folding(network, traced, shapes.of).run()
    graph.eliminate_dead_code()
    graph.lint()
    for node in graph.nodes:
        if node.op in {"call_module", "get_attr"}:
            network.targets[node.target] = network.affine.get(node.target) or _found(
                traced, node.target
            )
    order = {node.target: None for node in graph.nodes if node.op == "call_module"}
    network.sites = {name: network.sites[name] for name in order if name in network.sites}
    inputs = _Inputs(network)
    with torch.no_grad():
        inputs.run(*positional)
    return network


def _found(module: nn.Module, path: str) -> Any:
    parent, _, last = path.rpartition(".")
    return getattr(module.get_submodule(parent), last)


def _positional(
    model: nn.Module, graph: fx.Graph, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[Any]:
    """Return the inputs in the order of the graph's placeholders."""
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    names = [node.target for node in graph.nodes if node.op == "placeholder"]
    return [bound.arguments[name] for name in names]


class _Shapes(fx.Interpreter):
    """Notes the shape and dtype of every tensor that the graph computes."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.of: dict[fx.Node, tuple[torch.Size, torch.dtype]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.of[n] = result.shape, result.dtype
        return result


class _Inputs(fx.Interpreter):
    """Notes what each site is given. Residuals are added here, which torch's modules don't."""

    def __init__(self, network: Network) -> None:
        modules = {name: _Plain(site) for name, site in network.sites.items()}
        super().__init__(fx.GraphModule({**network.targets, **modules}, network.graph))


class _Plain(nn.Module):
    """A site computed by torch, which notes its inputs."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:  # noqa: A002
        site, x = self.site, input
        site.inputs = (x,) if residual is None else (x, residual)
        y: Tensor = site.module(x)
        if site.norm is not None:
            by_channel = (-1, 1, 1)
            y = y * site.norm.factor.view(by_channel) + site.norm.shift.view(by_channel)
            y = y.to(x.dtype)
        y = y if residual is None else y + residual
        return y if site.bounds is None else y.clamp(*site.bounds)


def _drop_identities(graph: fx.Graph, traced: fx.GraphModule) -> None:
    for node in list(graph.nodes):
        if node.op != "call_module":
            continue
        module = traced.get_submodule(node.target)
        if isinstance(module, (nn.Identity, nn.modules.dropout._DropoutNd)):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _pool_by_module(node: fx.Node, traced: fx.GraphModule) -> None:
    """Compute a function that pools by a module that knows the kernels' layout."""
    if any(isinstance(one, fx.Node) for one in (*node.args[1:], *node.kwargs.values())):
        return
    if node.kwargs.get("return_indices"):
        return
    settings = {key: value for key, value in node.kwargs.items() if key not in {"input"}}
    source = node.args[0] if node.args else node.kwargs["input"]
    pool = _POOL_FUNCTIONS[node.target](*node.args[1:], **settings)
    name = f"pool_{node.name}"
    traced.add_submodule(name, KernelLayoutPool(pool))
    node.op, node.target, node.args, node.kwargs = "call_module", name, (source,), {}


class _Folding:
    """Steps 2 to 4."""

    def __init__(
        self,
        network: Network,
        traced: fx.GraphModule,
        shapes: Mapping[fx.Node, tuple[torch.Size, torch.dtype]],
    ) -> None:
        self.network = network
        self.traced = traced
        self.shapes = shapes
        nodes = network.graph.nodes
        self.calls = Counter(node.target for node in nodes if node.op == "call_module")

    def run(self) -> None:
        for node in list(self.network.graph.nodes):
            if self._norm(node) is not None:
                self._fold_norm(node)
        # Several additions in a row end in the last.
        for node in list(self.network.graph.nodes):
            if self._is_addition(node):
                self._fold_addition(node)
        for node in list(self.network.graph.nodes):
            self._fold_clamp(node)

    def _site(self, node: Any) -> Site | None:
        """Return the site of a node that is the only call of a layer, and read by one node only."""
        if not isinstance(node, fx.Node) or node.op != "call_module" or len(node.users) != 1:
            return None
        return self.network.sites.get(node.target) if self.calls[node.target] == 1 else None  # type: ignore[arg-type]

    def _norm(self, node: fx.Node) -> nn.BatchNorm2d | None:
        if node.op != "call_module" or self.calls[node.target] != 1:
            return None
        module = self.traced.get_submodule(str(node.target))
        is_fixed = type(module) is nn.BatchNorm2d and module.running_mean is not None
        return module if is_fixed and not module._forward_hooks else None  # type: ignore[return-value]

    def _replace(self, node: fx.Node, by: fx.Node) -> None:
        node.replace_all_uses_with(by)
        self.network.graph.erase_node(node)

    def _fold_norm(self, node: fx.Node) -> None:
        norm = self._norm(node)
        assert norm is not None
        assert norm.running_mean is not None
        assert norm.running_var is not None
        statistics = NormStatistics.of(
            norm.running_mean.detach(),
            norm.running_var.detach(),
            norm._parameters["weight"],
            norm._parameters["bias"],
            norm.eps,
        )
        name, before = canonical_name(str(node.target)), node.args[0]
        site = self._site(before)
        if site is None or not isinstance(site.module, nn.Conv2d) or site.module._forward_hooks:
            origin = Origin("", None, name, norm.eps)
            self.network.affine[str(node.target)] = Affine(statistics, origin)
            return
        site.norm = statistics
        site.origin = Origin(site.origin.weight, site.origin.bias, name, norm.eps)
        self._replace(node, before)  # type: ignore[arg-type]

    def _is_addition(self, node: fx.Node) -> bool:
        is_function = node.op == "call_function" and node.target in _ADDITIONS
        is_method = node.op == "call_method" and node.target in {"add", "add_"}
        if not (is_function or is_method) or len(node.args) != 2 or node.kwargs:
            return False
        first, second = (self.shapes.get(one) for one in node.args)  # type: ignore[arg-type]
        return first is not None and first == second and node.args[0] is not node.args[1]

    def _fold_addition(self, node: fx.Node) -> None:
        order = {one: place for place, one in enumerate(self.network.graph.nodes)}
        last, other = sorted(node.args, key=order.__getitem__, reverse=True)
        site = self._site(last)
        assert isinstance(last, fx.Node)
        if site is None or not isinstance(site.module, nn.Conv2d) or len(last.args) != 1:
            return
        last.args = (*last.args, other)
        self.shapes = {**self.shapes, last: self.shapes[node]}
        self._replace(node, last)

    def _fold_clamp(self, node: fx.Node) -> None:
        target: Any = node.target
        if node.op == "call_module":
            target = type(self.traced.get_submodule(str(node.target)))
        bounds = _CLAMPS.get(target)
        before = node.args[0] if node.args else None
        if bounds is None or not isinstance(before, fx.Node) or len(before.users) != 1:
            return
        place = self._site(before) or self.network.affine.get(str(before.target))
        if place is None or place.bounds is not None:
            return
        if isinstance(place, Site) and place.module._forward_hooks:
            return
        place.bounds = bounds
        self._replace(node, before)


def _with_conversions(
    graph: fx.Graph, layers: Mapping[str, nn.Module]
) -> tuple[fx.Graph, dict[str, nn.Module]]:
    """Return a copy of the graph in which a map that several live layers read is converted once."""
    copied = fx.Graph()
    output = copied.graph_copy(graph, {})
    copied.output(output)
    conversions: dict[str, nn.Module] = {}
    for node in list(copied.nodes):
        readers = [one for one in node.users if isinstance(layers.get(str(one.target)), LiveConv2d)]
        made_so = isinstance(layers.get(str(node.target)), LiveConv2d)
        if len(readers) < 2 or made_so or node.op == "output":
            continue
        name = f"in_kernel_layout_{len(conversions)}"
        conversions[name] = InKernelLayout()
        with copied.inserting_after(node):
            converted = copied.call_module(name, (node,))
        for reader in readers:
            reader.replace_input_with(node, converted)
    copied.lint()
    return copied, conversions


def _converted(one: Any, dtype: torch.dtype) -> Any:
    if isinstance(one, Affine):
        return one  # it computes in float32, and keeps the number format of the map
    if isinstance(one, nn.Module):
        return copy.deepcopy(one).to(dtype)
    return one.to(dtype) if isinstance(one, Tensor) and one.is_floating_point() else one
