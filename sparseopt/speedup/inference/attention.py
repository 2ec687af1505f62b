"""Splits attention in a graph into two linear layers and the operations between them."""

from __future__ import annotations

import operator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from sparseopt.speedup.inference.live_layers import Origin
from sparseopt.utils.hooks import has_hooks
from sparseopt.utils.wrappers import canonical_name

__all__ = ["attend", "split_attention"]


def attend(qkv: Tensor, heads: int, batch_first: bool) -> Tensor:
    """Return scaled dot-product attention, without its projections.

    Args:
        qkv: queries, keys and values, concatenated: (batch, length, 3 * width) if ``batch_first``,
            else (length, batch, 3 * width). One sequence may also be (length, 3 * width).
        heads: the number of heads, which divides the width.
        batch_first: whether the batch is the first dimension.

    Returns:
        The attended values, with ``width`` instead of ``3 * width``.
    """
    if qkv.dim() == 2:
        return attend(qkv.unsqueeze(0), heads, True).squeeze(0)
    if not batch_first:
        qkv = qkv.transpose(0, 1)
    batch, length, _ = qkv.shape
    q, k, v = qkv.reshape(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return attended if batch_first else attended.transpose(0, 1)


def split_attention(traced: fx.GraphModule) -> dict[str, Origin]:
    """Replace each plain ``MultiheadAttention`` by its parts.

    It is plain if it is self-attention without masks, and without attention weights in its output.
    Others are not changed.

    Returns:
        For each new linear layer, by path, the names of its parameters in the model.
    """
    origins: dict[str, Origin] = {}
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and _is_plain(node, traced):
            origins.update(_split(node, traced))
    return origins


def _is_plain(node: fx.Node, traced: fx.GraphModule) -> bool:
    """Return whether a node is self-attention of which only the result is used.

    Query, keys and values must be one tensor, so that one projection computes all three. Masks,
    attention weights, hooks and a second call of the module are excluded.
    """
    module = traced.get_submodule(str(node.target))
    if type(module) is not nn.MultiheadAttention or len(node.args) != 3:
        return False
    query, *others = node.args
    options = {name: value for name, value in node.kwargs.items() if value not in {None, False}}
    return bool(
        all(other is query for other in others)
        and node.kwargs.get("need_weights") is False
        and not options
        and bool(module._qkv_same_embed_dim)
        and module.bias_k is None
        and not module.add_zero_attn
        and not has_hooks(module)
        and all(_is_first_item(user) or _is_unused(user) for user in node.users)
        and sum(one.target == node.target for one in traced.graph.nodes) == 1
    )


def _is_first_item(node: fx.Node) -> bool:
    return node.target is operator.getitem and bool(node.args[1] == 0)


def _is_unused(node: fx.Node) -> bool:
    return node.target is operator.getitem and not node.users


def _split(node: fx.Node, traced: fx.GraphModule) -> dict[str, Origin]:
    """Replace an attention module by a linear layer, attention without weights, and another one.

    The linear layers have the parameters of the module, so that they can be replaced like other
    linear layers.

    Returns:
        The names of their parameters in the model, by path of the layer.
    """
    path = str(node.target)
    module: Any = traced.get_submodule(path)
    name = canonical_name(path)
    weight, bias = module.in_proj_weight, module.in_proj_bias
    out = module.out_proj
    # A new module takes the new layers, because the model still uses the old module.
    traced.set_submodule(path, nn.Module())
    traced.add_submodule(f"{path}.in_proj", _linear(weight, bias))
    traced.add_submodule(f"{path}.out_proj", _linear(out.weight, out.bias))
    graph = traced.graph
    with graph.inserting_before(node):
        qkv = graph.call_module(f"{path}.in_proj", (node.args[0],))
        attended = graph.call_function(attend, (qkv, module.num_heads, module.batch_first))
        result = graph.call_module(f"{path}.out_proj", (attended,))
    for user in list(node.users):
        if _is_first_item(user):
            user.replace_all_uses_with(result)
        graph.erase_node(user)
    graph.erase_node(node)
    return {
        f"{path}.in_proj": Origin(
            f"{name}.in_proj_weight", None if bias is None else f"{name}.in_proj_bias"
        ),
        f"{path}.out_proj": Origin(
            f"{name}.out_proj.weight", None if out.bias is None else f"{name}.out_proj.bias"
        ),
    }


def _linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = weight
    if bias is not None:
        layer.bias = bias
    return layer
