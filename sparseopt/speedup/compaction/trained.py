"""What is made of parameters alone, and where training may yet make it other than zero.

A gate that begins at zero is no constant: it has a gradient of all that it closes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from sparseopt.speedup.compaction.propagation_rules import is_move, run
from sparseopt.speedup.compaction.values import Value
from sparseopt.structured.graph.elementwise import is_pointwise
from sparseopt.structured.graph.tracing import operator_name

__all__ = ["may_become"]


def may_become(
    node: Node, values: Mapping[Node, Any], made: Mapping[Node, Any], result: Any
) -> Any:
    """Return where a call's result may be other than zero after further training.

    Args:
        node: the call.
        values: the values of its arguments.
        made: the same of every argument that is made of parameters alone.
        result: what the call returned.

    Returns:
        A tensor of the result's shape, or one for each of several; ``None`` if the result is made
        of something that the input may change, or of no parameter.
    """
    operands = [one for one in node.all_input_nodes if isinstance(values[one], Value)]
    if not any(one in made for one in operands):
        return None
    if any(bool(values[one].open.any()) for one in operands if one not in made):
        return None
    counts = {one: made.get(one, values[one].tensor != 0) for one in operands}
    if is_move(node):
        moved = {one: Value(values[one].tensor, counts[one]) for one in operands}
        return run(node, moved, lambda value: value.open)
    if not isinstance(result, Tensor):
        return [torch.ones_like(one, dtype=torch.bool) for one in result]
    everywhere = torch.ones_like(result, dtype=torch.bool)
    if operator_name(node) == "mul":
        for one in counts.values():
            everywhere = everywhere & one
        return everywhere
    if is_pointwise(node):
        anywhere = result != 0
        for one in counts.values():
            anywhere = anywhere | one
        return anywhere
    return everywhere
