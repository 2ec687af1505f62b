"""Opens torch's transformer layers, so that a graph has the linear layers inside them.

``torch.fx`` calls all modules of ``torch.nn`` as a whole, and the fast path of
``TransformerEncoderLayer`` reads the weights of the layers inside without calling them. Two steps
make the layers inside nodes of the graph:

1. :class:`OpeningTracer` traces encoders by their definition, from the layers inside.
2. :func:`split_attention` replaces self-attention by two linear layers and the operations between
   them.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sparseopt.speedup.inference.live_layers import Origin
from sparseopt.utils.hooks import has_hooks, has_own_functions
from sparseopt.utils.wrappers import canonical_name

__all__ = ["OpeningTracer", "attend", "clear_padding", "split_attention"]


def _encoder_layer(
    layer: nn.TransformerEncoderLayer,
    src: Any,
    src_mask: Any = None,
    src_key_padding_mask: Any = None,
    is_causal: Any = False,
) -> Any:
    """Compute a ``TransformerEncoderLayer`` in evaluation mode."""

    def attention(x: Any) -> Any:
        y = layer.self_attn(
            x,
            x,
            x,
            key_padding_mask=src_key_padding_mask,
            need_weights=False,
            attn_mask=src_mask,
            is_causal=is_causal,
        )
        return layer.dropout1(y[0])

    def feed_forward(x: Any) -> Any:
        y = layer.dropout(layer.activation(layer.linear1(x)))
        return layer.dropout2(layer.linear2(y))

    if layer.norm_first:
        x = src + attention(layer.norm1(src))
        return x + feed_forward(layer.norm2(x))
    x = layer.norm1(src + attention(src))
    return layer.norm2(x + feed_forward(x))


def _encoder(
    encoder: nn.TransformerEncoder,
    src: Any,
    mask: Any = None,
    src_key_padding_mask: Any = None,
    is_causal: Any = None,
) -> Any:
    """Compute a ``TransformerEncoder`` in evaluation mode.

    ``is_causal`` is a hint that the mask is causal. The mask alone gives the same result.
    """
    x = src
    for layer in encoder.layers:
        x = layer(x, src_mask=mask, src_key_padding_mask=src_key_padding_mask)
    if getattr(encoder, "use_nested_tensor", False):
        x = clear_padding(x, mask, src_key_padding_mask)
    return x if encoder.norm is None else encoder.norm(x)


#: How to compute each of torch's modules from the modules inside it.
_DEFINITIONS: Final[Mapping[type[nn.Module], Callable[..., Any]]] = {
    nn.TransformerEncoder: _encoder,
    nn.TransformerEncoderLayer: _encoder_layer,
}


class OpeningTracer(fx.Tracer):
    """Traces torch's encoders by their definition, except encoders with code of their own.

    This code is a hook, or a function that is replaced on an encoder or on a module inside it.
    """

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """Return the graph of a model, which may itself be an encoder."""
        if isinstance(root, nn.Module) and _can_open(root):
            root = _as_defined(root)
        return super().trace(root, concrete_args)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the graph calls a module as a whole."""
        return not _can_open(m) and super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Trace one call of a module."""
        if _can_open(m):
            forward = functools.partial(_DEFINITIONS[type(m)], m)
        return super().call_module(m, forward, args, kwargs)


def _as_defined(module: nn.Module) -> nn.Module:
    """Return a module that shares all attributes of a module, and whose code is its definition."""
    kind = type("Defined", (nn.Module,), {"forward": _DEFINITIONS[type(module)]})
    defined: nn.Module = object.__new__(kind)
    vars(defined).update(vars(module))
    return defined


def _can_open(module: nn.Module) -> bool:
    return type(module) in _DEFINITIONS and not has_hooks(module) and not _is_changed_inside(module)


def _is_changed_inside(module: nn.Module) -> bool:
    # torch's fast path reads the weights of the modules inside, and does not call their functions.
    return any(has_own_functions(one) for one in module.modules())


def clear_padding(x: Tensor, mask: Tensor | None, padding: Tensor | None) -> Tensor:
    """Set padded positions to zero where ``TransformerEncoder`` does so in inference.

    It computes batches without the padding if the padding is at the end of each sequence, and if
    there is no other mask and no autocast.

    Args:
        x: results of the last layer, (batch, length, width).
        mask: the mask of the attention, or ``None``.
        padding: (batch, length); true or ``-inf`` at padded positions; or ``None``.

    Returns:
        A tensor like ``x``.
    """
    if x.dim() != 3 or mask is not None or padding is None:
        return x
    if torch.compiler.is_compiling() or torch.is_autocast_enabled():
        return x
    if not torch.backends.mha.get_fastpath_enabled():
        return x
    padded = _added(padding, x.dtype) != 0
    aligned = torch._nested_tensor_from_mask_left_aligned(x, ~padded)
    return x.masked_fill(padded.unsqueeze(-1), 0.0) if aligned else x


# Its calls stay in a trace as they are, because they depend on values.
fx.wrap("clear_padding")


def attend(
    qkv: Tensor,
    heads: int,
    batch_first: bool,
    attn_mask: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """Return scaled dot-product attention, without its projections.

    Args:
        qkv: queries, keys and values, concatenated: (batch, length, 3 * width) if ``batch_first``,
            else (length, batch, 3 * width). One sequence may also be (length, 3 * width).
        heads: the number of heads, which divides the width.
        batch_first: whether the batch is the first dimension.
        attn_mask: (length, length) or (batch * heads, length, length): true where a query does not
            see a key, or numbers that are added to the scores.
        key_padding_mask: (batch, length), or (length,) for one sequence: true at keys that no query
            sees, or numbers that are added to the scores.

    Returns:
        The attended values, with ``width`` instead of ``3 * width``.
    """
    if qkv.dim() == 2:
        return attend(qkv.unsqueeze(0), heads, True, attn_mask, key_padding_mask).squeeze(0)
    if not batch_first:
        qkv = qkv.transpose(0, 1)
    batch, length, width = qkv.shape
    q, k, v = (
        qkv.reshape(batch, length, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4).unbind(0)
    )
    mask = None if attn_mask is None else _added(attn_mask, qkv.dtype)
    if mask is not None and mask.dim() == 3:
        mask = mask.view(batch, heads, length, length)
    if key_padding_mask is not None:
        padding = _added(key_padding_mask, qkv.dtype).view(batch, 1, 1, length)
        mask = padding if mask is None else mask + padding
    attended = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
    return attended if batch_first else attended.transpose(0, 1)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a mask as numbers that are added to scores of this number format."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)
    return mask.to(dtype)


def split_attention(traced: fx.GraphModule) -> dict[str, Origin]:
    """Replace each plain ``MultiheadAttention`` by its parts.

    It is plain if it is self-attention of which only the result is used, not the weights of the
    attention. Others are not changed.

    Returns:
        For each new linear layer, by path, the names of its parameters in the model.
    """
    origins: dict[str, Origin] = {}
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and _is_plain(node, traced):
            origins.update(_split(node, traced))
    return origins


def _arguments(node: fx.Node) -> dict[str, Any]:
    """Return the arguments of a call of ``MultiheadAttention``, by name."""
    signature = inspect.signature(nn.MultiheadAttention.forward)
    return signature.bind(None, *node.args, **node.kwargs).arguments


def _is_plain(node: fx.Node, traced: fx.GraphModule) -> bool:
    """Return whether a node is self-attention of which only the result is used.

    Query, keys and values must be one tensor, so that one projection computes all three. Hooks,
    replaced functions, and a second call of the module, are excluded.
    """
    module = traced.get_submodule(str(node.target))
    if type(module) is not nn.MultiheadAttention:
        return False
    given = _arguments(node)
    is_hinted = given.get("is_causal", False) is not False
    return bool(
        given["query"] is given["key"] is given["value"]
        # torch raises an error for the hint without a mask.
        and not (is_hinted and given.get("attn_mask") is None)
        and bool(module._qkv_same_embed_dim)
        and module.bias_k is None
        and not module.add_zero_attn
        and not has_hooks(module)
        and not _is_changed_inside(module)
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
    given = _arguments(node)
    masks = {name: given.get(name) for name in ("attn_mask", "key_padding_mask")}
    with graph.inserting_before(node):
        qkv = graph.call_module(f"{path}.in_proj", (given["query"],))
        attended = graph.call_function(attend, (qkv, module.num_heads, module.batch_first), masks)
        attended.meta["is_wrapped"] = True  # or else a pickle would trace the function's own code
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
