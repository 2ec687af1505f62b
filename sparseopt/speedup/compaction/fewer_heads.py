"""``torch.nn.MultiheadAttention`` with fewer heads than its embedding has room for."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FewerHeads", "with_fewer_heads"]


class FewerHeads(nn.MultiheadAttention):
    """Attention whose heads together are narrower than its embedding.

    torch's own forward pass requires that the number of heads times their width is ``embed_dim``.
    This class has the same parameters with the same names, the same arguments and the same results.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return outputs and, if asked for, weights; see :class:`torch.nn.MultiheadAttention`."""
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal=True needs attn_mask, as in torch's own attention.")
        is_batched = query.dim() == 3
        batch_first = self.batch_first and is_batched
        batch = 0 if batch_first else 1
        inputs = (
            (query, key, value) if is_batched else (x.unsqueeze(1) for x in (query, key, value))
        )
        queries, keys, values = (
            self._split(F.linear(x if batch_first else x.transpose(0, 1), weight, bias))
            for x, (weight, bias) in zip(inputs, self._projections(), strict=True)
        )
        # As in torch, the mask is not read then: the kernel makes a causal mask.
        makes_mask = is_causal and key_padding_mask is None and not need_weights
        mask = None if makes_mask else self._mask(attn_mask, key_padding_mask, queries)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, dropout, training=self.training)
            heads = weights @ values
        else:
            heads = F.scaled_dot_product_attention(
                queries, keys, values, mask, dropout, is_causal=makes_mask
            )
        outputs = self.out_proj(heads.transpose(1, 2).flatten(2))
        if not batch_first:
            outputs = outputs.transpose(0, 1)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if is_batched:
            return outputs, weights
        return outputs.squeeze(batch), None if weights is None else weights.squeeze(0)

    def _split(self, x: Tensor) -> Tensor:
        """Return ``(batch, tokens, width)`` as ``(batch, heads, tokens, width of a head)``."""
        return x.view(*x.shape[:-1], self.num_heads, -1).transpose(1, 2)

    def _projections(self) -> list[tuple[Tensor, Tensor | None]]:
        """Return weight and bias of queries, keys and values."""
        packed: Tensor | None = self.in_proj_weight
        bias: Tensor | None = self.in_proj_bias
        weights: tuple[Tensor, ...] = (
            (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
            if packed is None
            else packed.chunk(3)
        )
        biases = (None, None, None) if bias is None else bias.chunk(3)
        return list(zip(weights, biases, strict=True))

    def _mask(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, queries: Tensor
    ) -> Tensor | None:
        """Return the sum of both masks, ``(batch or 1, heads or 1, queries, keys)``, for scores."""
        added = [
            F._canonical_mask(mask, name, None, "", queries.dtype, check_other=False)
            for mask, name in ((attn_mask, "attn_mask"), (key_padding_mask, "key_padding_mask"))
        ]
        of_places, of_keys = added
        if of_places is not None and of_places.dim() == 3:
            of_places = of_places.view(-1, self.num_heads, *of_places.shape[1:])
        if of_keys is not None:
            of_keys = of_keys.view(-1, 1, 1, of_keys.shape[-1])
        if of_places is None or of_keys is None:
            return of_keys if of_places is None else of_places
        return of_places + of_keys


def with_fewer_heads(attention: nn.MultiheadAttention) -> None:
    """Make attention, whose weights were cut already, compute with its remaining heads."""
    packed: Tensor | None = attention.in_proj_weight
    rows = len(attention.q_proj_weight) if packed is None else len(packed) // 3
    attention.num_heads = rows // attention.head_dim
    # torch checks this before it takes a fast path, which can't compute with fewer heads.
    attention._qkv_same_embed_dim = False
    attention.__class__ = FewerHeads
