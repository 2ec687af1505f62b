"""The steps that simplify a traced model; ``tracing.py`` lists them."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import fx, nn

from sparseopt.speedup.inference.dense_layers import Affine, KernelLayoutPool
from sparseopt.speedup.inference.live_layers import NormStatistics, Origin
from sparseopt.speedup.inference.network import Network, Site
from sparseopt.utils.hooks import has_own_code
from sparseopt.utils.wrappers import canonical_name

__all__ = ["POOL_FUNCTIONS", "Folding", "drop_identities", "pool_by_module", "reshape_views"]

#: For each pooling function of torch, the module that computes the same.
POOL_FUNCTIONS: Final[dict[Any, type[nn.Module]]] = {
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


def drop_identities(graph: fx.Graph, traced: fx.GraphModule) -> None:
    """Remove the modules that do nothing in evaluation mode from a graph."""
    for node in list(graph.nodes):
        if node.op != "call_module":
            continue
        module = traced.get_submodule(node.target)
        if has_own_code(module):
            continue
        if isinstance(module, (nn.Identity, nn.modules.dropout._DropoutNd)):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def reshape_views(graph: fx.Graph) -> None:
    """Replace ``view`` by ``reshape``, which also takes maps in other memory layouts."""
    for node in graph.nodes:
        is_view = node.op == "call_method" and node.target == "view" and not node.kwargs
        if is_view and all(map(_is_size, node.args[1:])):
            node.target = "reshape"


def _is_size(argument: object) -> bool:
    """Whether an argument of ``view`` is a size or several, and not a number format."""
    if isinstance(argument, fx.Node):
        return not (argument.target is getattr and argument.args[1:] == ("dtype",))
    return not isinstance(argument, torch.dtype)


def pool_by_module(node: fx.Node, traced: fx.GraphModule) -> None:
    """Replace a pooling function by a module that keeps the kernels' layout."""
    if any(isinstance(one, fx.Node) for one in (*node.args[1:], *node.kwargs.values())):
        return
    if node.kwargs.get("return_indices"):
        return
    settings = {key: value for key, value in node.kwargs.items() if key not in {"input"}}
    source = node.args[0] if node.args else node.kwargs["input"]
    pool = POOL_FUNCTIONS[node.target](*node.args[1:], **settings)
    name = f"pool_{node.name}"
    traced.add_submodule(name, KernelLayoutPool(pool))
    node.op, node.target, node.args, node.kwargs = "call_module", name, (source,), {}


class Folding:
    """Folds BatchNorms, additions and ReLUs into layers: steps 2 to 4 of ``tracing.py``.

    Args:
        network: the network, whose graph, sites and BatchNorms are changed in place.
        traced: the modules that the graph refers to.
        shapes: shape and dtype of each tensor in the graph.
    """

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
        """Apply each step to the full graph."""
        for node in list(self.network.graph.nodes):
            if self._norm(node) is not None:
                self._fold_norm(node)
        # In graph order, so that a layer takes the first of several additions in a row.
        for node in list(self.network.graph.nodes):
            if self._is_addition(node):
                self._fold_addition(node)
        for node in list(self.network.graph.nodes):
            self._fold_clamp(node)

    def _site(self, node: Any) -> Site | None:
        """Return the site of a node if its layer is called once, and its result is read once."""
        if not isinstance(node, fx.Node) or node.op != "call_module" or len(node.users) != 1:
            return None
        return self.network.sites.get(node.target) if self.calls[node.target] == 1 else None  # type: ignore[arg-type]

    def _norm(self, node: fx.Node) -> nn.BatchNorm2d | None:
        if node.op != "call_module" or self.calls[node.target] != 1:
            return None
        module = self.traced.get_submodule(str(node.target))
        is_fixed = type(module) is nn.BatchNorm2d and module.running_mean is not None
        return module if is_fixed and not has_own_code(module) else None  # type: ignore[return-value]

    def _replace(self, node: fx.Node, by: fx.Node) -> None:
        node.replace_all_uses_with(by)
        self.network.graph.erase_node(node)

    def _fold_norm(self, node: fx.Node) -> None:
        """Move a BatchNorm into the convolution before it, or else replace it by an ``Affine``.

        No other node may read the result of the convolution. Its weights are not scaled here: the
        site keeps the statistics, and each layer that is built from the site applies them.
        """
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
        if site is None or not isinstance(site.module, nn.Conv2d):
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
        """Move an addition into the convolution that computes the later one of its terms.

        When this convolution runs, the other term exists, so it becomes the second input of the
        convolution. A convolution takes at most one addition.
        """
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
        """Move a ReLU or ReLU6 into the layer before it, which then clamps its own result.

        No other node may read the result of the layer, and a layer takes at most one clamp. Layers
        with hooks or replaced functions are not changed.
        """
        target: Any = node.target
        if node.op == "call_module":
            module = self.traced.get_submodule(str(node.target))
            target = None if has_own_code(module) else type(module)
        bounds = _CLAMPS.get(target)
        before = node.args[0] if node.args else None
        if bounds is None or not isinstance(before, fx.Node) or len(before.users) != 1:
            return
        place = self._site(before) or self.network.affine.get(str(before.target))
        if place is None or place.bounds is not None:
            return
        place.bounds = bounds
        self._replace(node, before)
