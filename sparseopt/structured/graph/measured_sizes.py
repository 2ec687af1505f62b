"""Sizes that depend on values of the input, such as those after ``x[mask]``, as plain numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

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
    nodes = module.graph.nodes
    found = frozenset(node for node in nodes if any(map(_is_symbolic, _tensors(node))))
    if found:
        with torch.no_grad():
            _Measurement(module, found).run(*inputs, enable_io_processing=False)
    return found


class _Measurement(Interpreter):
    def __init__(self, module: GraphModule, measured: frozenset[Node]) -> None:
        super().__init__(module)
        self._measured = measured

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n in self._measured:
            several = isinstance(result, (list, tuple))
            sizes = [
                _without_values(tensor, like)
                for tensor, like in zip(result if several else [result], _tensors(n), strict=True)
            ]
            n.meta["val"] = sizes if several else sizes[0]
        return result


def _tensors(node: Node) -> list[Any]:
    value = node.meta.get("val")
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _is_symbolic(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and any(isinstance(n, torch.SymInt) for n in tensor.shape)


def _without_values(tensor: Any, like: Any) -> Any:
    if not isinstance(tensor, Tensor):
        return tensor
    with like.fake_mode:
        return torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
        )
