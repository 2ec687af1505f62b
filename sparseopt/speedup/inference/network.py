"""The layers of a model that can be replaced, and copies of the model with other layers."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from sparseopt.speedup.inference.dense_layers import Affine, KernelLayoutPool
from sparseopt.speedup.inference.live_layers import (
    Bounds,
    InKernelLayout,
    LiveConv2d,
    NormStatistics,
    Origin,
)
from sparseopt.speedup.inference.memory_order import MemoryOrder, in_memory_orders
from sparseopt.utils.hooks import has_own_code

__all__ = ["POOLS", "ModuleNetwork", "Network", "Site", "original_names"]

#: The attribute of a built model that has the names in the original model's state dict.
ORIGINAL_NAMES: Final = "original_names"
POOLS: Final = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


@dataclass
class Site:
    """The place of a convolution or linear layer in the model.

    Attributes:
        name: path of the module.
        module: the model's own layer.
        origin: the names of its parameters, and of the BatchNorm that is folded in.
        norm: the BatchNorm that is folded in.
        bounds: the bounds that its results are clamped to.
        inputs: the inputs of the layer's last call, the residual last.
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
        graph: the simplified graph.
        targets: modules, parameters and buffers that the graph refers to, by path.
        sites: the layers that can be replaced, in the order of the graph.
        affine: the BatchNorms that are not folded, by path.
        orders: the memory order of each of the model's outputs.
        names: the names in the model's state dict; the graph may not need all of them.
    """

    graph: fx.Graph
    targets: dict[str, Any]
    sites: dict[str, Site]
    affine: dict[str, Affine] = field(default_factory=dict)
    orders: tuple[MemoryOrder, ...] = ()
    names: frozenset[str] = frozenset()

    def build(self, layers: Mapping[str, nn.Module], dtype: torch.dtype | None = None) -> nn.Module:
        """Return a copy of the model with these layers at their sites.

        All other modules and tensors are shared between the copies, unless they are converted.

        Args:
            layers: a layer for each site, by path.
            dtype: the number format that all other modules and tensors are converted to.
        """
        others = {path: one for path, one in self.targets.items() if path not in layers}
        if dtype is not None:
            others = {path: _converted(one, dtype) for path, one in others.items()}
        graph, conversions = _with_conversions(self.graph, layers)
        if self.affine or _makes_maps(self.sites):
            conversions |= _return_in_order(graph, self.orders)
        built = fx.GraphModule({**others, **layers, **conversions}, graph, "Condensed")
        # A pickle of a graph module keeps its attributes, and a deep copy keeps its ``meta``.
        setattr(built, ORIGINAL_NAMES, self.names)
        built.meta[ORIGINAL_NAMES] = self.names
        return built.eval()


@dataclass
class ModuleNetwork:
    """A model that can't be traced; see :class:`Network`."""

    model: nn.Module
    sites: dict[str, Site]
    orders: tuple[MemoryOrder, ...] = ()

    def build(self, layers: Mapping[str, nn.Module], dtype: torch.dtype | None = None) -> nn.Module:
        """Return a copy of the model with these layers at their sites."""
        memo: dict[int, Any] = {
            id(self.model.get_submodule(path)): layer for path, layer in layers.items()
        }
        copied = copy.deepcopy(self.model, memo)
        for path, module in list(copied.named_modules()):
            if type(module) in POOLS and not has_own_code(module):
                parent, _, last = path.rpartition(".")
                setattr(copied.get_submodule(parent), last, KernelLayoutPool(module))
        if _makes_maps(self.sites):
            copied.register_forward_hook(functools.partial(_output_in_order, orders=self.orders))
        return (copied if dtype is None else copied.to(dtype)).eval()


def original_names(model: nn.Module) -> frozenset[str]:
    """Return the names in the state dict of the model that a graph was made of; none for others."""
    found = getattr(model, ORIGINAL_NAMES, None)
    if found is None and isinstance(model, fx.GraphModule):
        found = model.meta.get(ORIGINAL_NAMES)
    return frozenset() if found is None else found


class InMemoryOrders(nn.Module):
    """Converts outputs to the memory orders in which the model returns them.

    Args:
        orders: the memory order of each output.
    """

    def __init__(self, orders: tuple[MemoryOrder, ...]) -> None:
        super().__init__()
        self.orders = orders

    def forward(self, outputs: Any) -> Any:
        """Return the same outputs."""
        return in_memory_orders(outputs, self.orders)


def _output_in_order(
    module: nn.Module, args: tuple[Any, ...], outputs: Any, *, orders: tuple[MemoryOrder, ...]
) -> Any:
    return in_memory_orders(outputs, orders)


def _makes_maps(sites: Mapping[str, Site]) -> bool:
    """Whether layers make maps, which are in the kernels' layout or in channels-last format."""
    return any(isinstance(site.module, nn.Conv2d) for site in sites.values())


def _return_in_order(graph: fx.Graph, orders: tuple[MemoryOrder, ...]) -> dict[str, nn.Module]:
    """Convert what a graph returns, and return the module that does it, by its path."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    with graph.inserting_before(output):
        output.args = (graph.call_module("in_memory_orders", (output.args[0],)),)
    return {"in_memory_orders": InMemoryOrders(orders)}


def _with_conversions(
    graph: fx.Graph, layers: Mapping[str, nn.Module]
) -> tuple[fx.Graph, dict[str, nn.Module]]:
    """Return a copy of the graph that converts a map once if several sparse layers read it.

    Without the extra node, each of the layers would convert the map to the kernels' layout.
    """
    copied = fx.Graph()
    output = copied.graph_copy(graph, {})
    copied.output(output)
    conversions: dict[str, nn.Module] = {}
    for node in list(copied.nodes):
        readers = [one for one in node.users if isinstance(layers.get(str(one.target)), LiveConv2d)]
        is_converted = isinstance(layers.get(str(node.target)), LiveConv2d)
        if len(readers) < 2 or is_converted or node.op == "output":
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
        return one  # factor and shift stay float32; the result has the map's number format
    if isinstance(one, nn.Module):
        return copy.deepcopy(one).to(dtype)
    return one.to(dtype) if isinstance(one, Tensor) and one.is_floating_point() else one
