"""Finds the layers of a model, in a simplified graph if ``torch.fx`` can trace the model.

The graph is simplified in four steps:

1. Torch's encoders are traced from the layers inside them. Attention is split into two linear
   layers and the operations between them. Dropout and identities are removed.
2. A BatchNorm is folded into the convolution before it.
3. An addition is computed by the convolution that makes one of its operands, if the other operand
   is computed earlier.
4. ReLU and ReLU6 are computed by the layer before them, or by a BatchNorm that was not folded.

In steps 2 to 4 no other node may read the result of the layer before. Invariant: each step replaces
nodes by one node with the same value. If the model can't be traced, the copy is a deep copy. Then
layers are replaced one by one and nothing is folded.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from sparseopt.speedup.inference.attention import split_attention
from sparseopt.speedup.inference.dense_layers import KernelLayoutPool
from sparseopt.speedup.inference.folding import (
    POOL_FUNCTIONS,
    Folding,
    drop_identities,
    pool_by_module,
    reshape_views,
)
from sparseopt.speedup.inference.live_layers import Origin
from sparseopt.speedup.inference.memory_order import memory_orders
from sparseopt.speedup.inference.network import POOLS, ModuleNetwork, Network, Site
from sparseopt.speedup.inference.optional_arguments import trace
from sparseopt.speedup.live_training.layer_state import convolution_padding
from sparseopt.utils.hooks import has_own_code
from sparseopt.utils.probe import preserve_attributes, preserve_model
from sparseopt.utils.wrappers import canonical_name

__all__ = ["take_apart"]


def take_apart(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], skipped: str | None = None
) -> tuple[Network | ModuleNetwork, str | None]:
    """Find the layers of a model that can be replaced, with their inputs; don't change the model.

    Args:
        model: the model, in evaluation mode.
        args: positional inputs, which the model is run on.
        kwargs: keyword inputs.
        skipped: code of the model that its graph would not run. Then the model is not traced.

    Returns:
        The network, and why the model could not be traced, or ``None``.
    """
    try:
        if skipped is not None:
            raise ValueError(skipped)
        return _traced(model, args, kwargs), None
    # Code of the model may raise any error for the proxies that a trace passes instead of tensors.
    except Exception as error:
        sites = {
            name: Site(name, module, _origin(name, module))
            for name, module in model.named_modules()
            if _is_layer(module)
        }
        network = ModuleNetwork(model, sites)
        _record_inputs(network, args, kwargs)
        reason = str(error).partition("\n")[0]
        return network, f"{type(error).__name__}: {reason}"


def _is_layer(module: nn.Module) -> bool:
    """Whether a layer can be replaced. Subclasses can't, because they may compute other results."""
    # The replacement would not run this code.
    if type(module) not in {nn.Linear, nn.Conv2d} or has_own_code(module):
        return False
    if not {"weight", "bias"} <= module._parameters.keys():
        return False
    if isinstance(module, nn.Linear):
        return True
    assert isinstance(module, nn.Conv2d)
    return module.padding_mode == "zeros" and convolution_padding(module) is not None


def _origin(name: str, module: nn.Module) -> Origin:
    path = canonical_name(f"{name}.weight" if name else "weight").removesuffix("weight")
    has_bias = module._parameters["bias"] is not None
    return Origin(f"{path}weight", f"{path}bias" if has_bias else None)


def _record_inputs(
    network: ModuleNetwork, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Run the model once, and record the inputs of layers and the orders of outputs."""

    def record(site: Site) -> Any:
        def hook(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            site.inputs = (given[0] if given else named["input"],)

        return hook

    handles = [
        site.module.register_forward_pre_hook(record(site), with_kwargs=True)
        for site in network.sites.values()
    ]
    try:
        with preserve_model(network.model), torch.no_grad():
            network.orders = memory_orders(network.model(*args, **kwargs))
    finally:
        for handle in handles:
            handle.remove()


def _traced(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Network:
    """Return the network of a model that ``torch.fx`` can trace.

    The order matters. Attention is split first, because its parts are layers. Shapes are recorded
    before operations are folded, because an addition is folded only if both terms have one shape.
    Inputs of layers are recorded last, when the graph has its final operations.
    """
    if _is_layer(model):
        raise ValueError("it is a single layer, with nothing to fold")
    # A model may keep what it was given, such as its shape, which is no value during a trace.
    arguments = _by_name(model, args, kwargs)
    with preserve_attributes(model):
        traced = trace(model, arguments)
    origins = split_attention(traced)
    traced.recompile()
    names = [node.target for node in traced.graph.nodes if node.op == "placeholder"]
    positional = [arguments[name] for name in names]
    shapes = _Shapes(traced)
    with torch.no_grad():
        outputs = shapes.run(*positional)
    graph = traced.graph
    drop_identities(graph, traced)
    reshape_views(graph)
    stored = frozenset(map(canonical_name, model.state_dict()))
    network = Network(graph, {}, {}, orders=memory_orders(outputs), names=stored)
    for node in graph.nodes:
        if node.op == "call_module":
            module = traced.get_submodule(node.target)
            if _is_layer(module):
                origin = origins.get(node.target) or _origin(node.target, module)
                network.sites.setdefault(node.target, Site(node.target, module, origin))  # type: ignore[arg-type]
            elif type(module) in POOLS and not has_own_code(module):
                traced.set_submodule(node.target, KernelLayoutPool(module))
        elif node.op == "call_function" and node.target in POOL_FUNCTIONS:
            pool_by_module(node, traced)
    Folding(network, traced, shapes.of).run()
    graph.eliminate_dead_code()
    graph.lint()
    for node in graph.nodes:
        if node.op in {"call_module", "get_attr"}:
            network.targets[node.target] = network.affine.get(node.target) or _attribute(
                traced, node.target
            )
    order = {node.target: None for node in graph.nodes if node.op == "call_module"}
    network.sites = {name: network.sites[name] for name in order if name in network.sites}
    inputs = _Inputs(network)
    with torch.no_grad():
        inputs.run(*positional)
    return network


def _attribute(module: nn.Module, path: str) -> Any:
    parent, _, last = path.rpartition(".")
    return getattr(module.get_submodule(parent), last)


def _by_name(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the inputs by name of the argument, and the defaults of arguments without input."""
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


class _Shapes(fx.Interpreter):
    """Records the shape and dtype of every tensor that the graph computes."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.of: dict[fx.Node, tuple[torch.Size, torch.dtype]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.of[n] = result.shape, result.dtype
        return result


class _Inputs(fx.Interpreter):
    """Records the inputs of each site. Sites add residuals, which torch's modules can't do."""

    def __init__(self, network: Network) -> None:
        modules = {name: _Plain(site) for name, site in network.sites.items()}
        super().__init__(fx.GraphModule({**network.targets, **modules}, network.graph))


class _Plain(nn.Module):
    """Computes a site with torch's own operations, and records its inputs."""

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
