"""Sizes that depend on values of the input, such as those after ``x[mask]``, as plain numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["measure_sizes"]


def measure_sizes(module: GraphModule, inputs: Iterator[Any]) -> frozenset[Node]:
    """Write into a graph the sizes that its tensors have for one input.

    ``torch.export`` knows them only as symbols. A graph without such sizes is not run.

    Args:
        module: the graph; ``meta["val"]`` of its nodes is changed.
        inputs: the values of its placeholders, which the run may write to.

    Returns:
        The calls whose results have such sizes.
    """
    symbolic = {node: found for node in module.graph.nodes if (found := _symbolic(node))}
    if symbolic:
        example = next(iter(symbolic.values()))[0]
        with torch.no_grad():
            measurement = _Measurement(module, frozenset(symbolic), example.fake_mode)
            measurement.run(*inputs, enable_io_processing=False)
    return frozenset(symbolic)


class _Measurement(Interpreter):
    def __init__(
        self, module: GraphModule, measured: frozenset[Node], fake_mode: FakeTensorMode
    ) -> None:
        super().__init__(module)
        self._measured = measured
        self._fake_mode = fake_mode

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n in self._measured:
            n.meta["val"] = tree_map_only(Tensor, self._without_values, result)
        return result

    def _without_values(self, tensor: Tensor) -> Tensor:
        return self._fake_mode.from_tensor(tensor, static_shapes=True)


def _symbolic(node: Node) -> list[FakeTensor]:
    """Return the results of a node that have a symbol in their shape."""
    return [
        leaf
        for leaf in tree_leaves(node.meta.get("val"))
        if isinstance(leaf, FakeTensor)
        and any(isinstance(size, torch.SymInt) for size in leaf.shape)
    ]
