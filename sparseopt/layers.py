"""``SparseLayer``: one weight, its mask, and exact drop and grow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

import torch
from torch import Tensor

from sparseopt.bits import pack, popcounts, unpack
from sparseopt.filling import fill_where_false_
from sparseopt.selection import largest, live_indices, smallest
from sparseopt.sharding import local, placement, shard_like, sums_over_shards, whole

__all__ = ["Regrow", "SparseLayer", "Transition"]

Regrow = Literal["keep", "zero", "never"]

#: Up to this density, saving the live entries, clearing the tensor and writing them back moves less
#: memory than a pass with the mask beside it.
SCATTER_BELOW: Final = 0.25


@dataclass(frozen=True)
class Transition:
    """A change of one layer's mask that is decided and not yet made.

    Attributes:
        mask: the new mask, bool, ``(numel,)`` in logical order.
        kept: which weights keep their value and their optimizer state, bool, ``(numel,)``.
        live: number of true entries of ``mask``.
        dropped: weights dropped.
        grown: weights grown.
        stayed: how many weights were live before and are after, 0-dimensional, on the device.
    """

    mask: Tensor
    kept: Tensor
    live: int
    dropped: int
    grown: int
    stayed: Tensor


class SparseLayer:
    """One weight and the mask that says which of its entries are live.

    Positions are logical (row-major over the shape), whatever the weight's memory format. A layer
    does not know which method moves it, nor which optimizer trains it.

    A weight may be sharded (a DTensor). Then the mask is sharded alike, everything that is counted
    or indexed is of the whole weight, and to gather, to propose, to rebind and to count what was
    ever live are collective calls.

    Attributes:
        name: the parameter's name.
        weight: the parameter, dense in memory, zero where it is not live.
        mask: bool, of the weight's shape, true where live. Read it; change it by a method.
        target: the live count that training ends with. A layer whose target is all its weights is
            dense: listed, and never updated.
        last_dropped: weights dropped by the last update.
        last_grown: weights grown by the last update.
    """

    def __init__(self, name: str, weight: torch.nn.Parameter, mask: Tensor, target: int) -> None:
        self.name = name
        self.weight = weight
        self.target = target
        self.last_dropped = 0
        self.last_grown = 0
        self.mask = torch.empty_like(weight, dtype=torch.bool, requires_grad=False)
        self._place = self._place_of_weight()
        self._set_mask(mask)
        self._ever = self._pack(self.mask)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.weight.shape))
        return f"SparseLayer({self.name!r}, {shape}, live={self.live}/{self.numel})"

    @property
    def numel(self) -> int:
        """Number of weights."""
        return self.weight.numel()

    @property
    def live(self) -> int:
        """Number of live weights."""
        return self._live

    @property
    def density(self) -> float:
        """Live weights over all weights, in (0, 1]."""
        return self._live / self.numel

    @property
    def is_dense(self) -> bool:
        """Whether the layer is meant to stay dense for ever."""
        return self.target == self.numel

    @property
    def is_full(self) -> bool:
        """Whether every weight is live now."""
        return self._live == self.numel

    @property
    def ever_live(self) -> int:
        """Number of weights that were live at any time."""
        return self.ever_live_counts([self])[0]

    @staticmethod
    def ever_live_counts(layers: Sequence[SparseLayer]) -> list[int]:
        """Return :attr:`ever_live` of each of ``layers``, waiting for their device once."""
        counts = popcounts([layer._ever for layer in layers])
        return sums_over_shards(counts, [layer.weight for layer in layers])

    @property
    def ever_live_bits(self) -> Tensor:
        """Which weights were ever live: uint8, one bit a weight, ``(ceil(numel / 8),)``.

        If the weight is sharded it is bool, of the weight's shape, and sharded alike.
        """
        if not self.is_sharded:
            return self._ever
        part = local(self.mask)
        ever = torch.empty_like(self.mask)
        local(ever).copy_(unpack(self._ever, part.numel()).view(part.shape))
        return ever

    def restore(self, mask: Tensor | None, ever_live_bits: Tensor | None, target: int) -> None:
        """Take over what a checkpoint has of this layer, without touching the weight.

        Args:
            mask: bool, of the weight's shape; ``None`` if every weight is live.
            ever_live_bits: what :attr:`ever_live_bits` was, sharded or not; ``None`` if every
                weight is live.
            target: what :attr:`target` was.
        """
        self._set_mask(torch.ones_like(self.mask) if mask is None else mask)
        self._set_ever_live(ever_live_bits)
        self.target = target

    def follow_weight(self) -> None:
        """Move the mask to where the weight is now, after ``model.to(...)``."""
        if self._place_of_weight() != self._place:
            self._place = self._place_of_weight()
            mask = torch.empty_like(self.weight, dtype=torch.bool, requires_grad=False)
            self.mask = mask.copy_(self.mask)
            self._ever = self._ever.to(self.mask.device)
            self._forget_positions()

    def rebind(self, weight: torch.nn.Parameter) -> None:
        """Take ``weight`` for the old one, of the same shape: a framework sharded the model."""
        mask, ever_live = whole(self.mask), whole(self.ever_live_bits)
        self.weight = weight
        self.mask = torch.empty_like(weight, dtype=torch.bool, requires_grad=False)
        self._place = self._place_of_weight()
        self._set_mask(mask)
        self._set_ever_live(ever_live)

    @property
    def is_sharded(self) -> bool:
        """Whether the weight is a DTensor, of which each rank holds a part."""
        return self._place[2] is not None

    def mask_(self, tensor: Tensor, fill: float = 0.0) -> None:
        """Write ``fill`` into a tensor of the weight's shape wherever the mask is false."""
        if self.is_sharded:
            self._check_placement(tensor)
            fill_where_false_(local(tensor), local(self.mask), fill)
        elif self.density <= SCATTER_BELOW and tensor.grad_fn is None:
            values = self.gather(tensor)
            self.scatter_(tensor.detach().fill_(fill), values)
        else:
            fill_where_false_(tensor, self.mask, fill)

    def fill_where_not_(self, kept: Tensor, tensor: Tensor, fill: float = 0.0) -> None:
        """Write ``fill`` into a tensor like the weight where ``kept``, ``(numel,)``, is false."""
        kept = shard_like(kept.view(self.weight.shape), self.weight)
        fill_where_false_(local(tensor), local(kept), fill)

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the live entries of a tensor of the weight's shape: ``(live,)``, logical order."""
        # detach() costs a tenth of a no_grad() block, and this runs for every layer at every step.
        tensor = whole(tensor) if self.is_sharded else tensor.detach()
        if self._in_weight_layout(tensor):
            return _storage_order(tensor).index_select(0, self._storage_offsets())
        return tensor.reshape(-1).index_select(0, self._live_positions())

    def gather_flat(self, flat: Tensor) -> Tensor:
        """Return the live entries of a tensor of shape ``(numel,)`` in logical order."""
        return flat.index_select(0, self._live_positions())

    def scatter_(self, tensor: Tensor, values: Tensor) -> None:
        """Write ``values``, ``(live,)``, into the live entries of a tensor like the weight."""
        tensor = tensor.detach()
        if self._in_weight_layout(tensor):
            _storage_order(tensor).scatter_(0, self._storage_offsets(), values)
            return
        flat = tensor.reshape(-1)
        flat.scatter_(0, self._live_positions(), values)
        if flat.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr():
            tensor.copy_(flat.view(tensor.shape))

    @torch.no_grad()
    def expand(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """Return a tensor in the weight's shape and layout with ``values``, ``(live,)``, in place.

        Entries that are not live are ``fill``.
        """
        if self.is_sharded:
            flat = values.new_full((self.numel,), fill)
            flat.scatter_(0, self._live_positions().long(), values)
            return shard_like(flat.view(self.weight.shape), self.weight)
        dense = torch.full_like(self.weight, fill, dtype=values.dtype, requires_grad=False)
        self.scatter_(dense, values)
        return dense

    @torch.no_grad()
    def propose(
        self,
        *,
        drop: int,
        grow: int,
        drop_scores: Tensor | None,
        grow_scores: Tensor | None,
        regrow: Regrow = "keep",
    ) -> Transition:
        """Decide which weights to drop and grow; change nothing.

        Args:
            drop: how many live weights to drop, the lowest ``drop_scores`` first.
            grow: how many weights to grow, the highest ``grow_scores`` first.
            drop_scores: scores of the live weights, ``(live,)`` in logical order; needed if
                ``drop`` is not 0.
            grow_scores: scores of the weight's shape; needed if ``grow`` is not 0.
            regrow: what becomes of a weight that was dropped just now and is a candidate again:
                it keeps its value and state (``"keep"``), it starts afresh (``"zero"``), or it is
                no candidate (``"never"``).

        Returns:
            The transition, for :meth:`commit`.
        """
        before = whole(self.mask).reshape(-1)
        survivors = before
        if drop:
            assert drop_scores is not None
            stays = ~smallest(drop_scores, drop)
            survivors = before.clone().scatter_(0, self._live_positions(), stays)
        after = survivors
        if grow:
            assert grow_scores is not None
            scores = whole(grow_scores).reshape(-1)
            if not scores.is_floating_point():
                scores = scores.float()
            taken = before if regrow == "never" else survivors
            after = survivors | largest(scores, grow, excluded=taken)
        # A tensor of its own: where nothing drops, survivors are the mask that commit() changes.
        kept = (before if regrow == "keep" else survivors) & after
        stayed = self.gather_flat(after).sum()
        return Transition(after, kept, self._live - drop + grow, drop, grow, stayed)

    @torch.no_grad()
    def commit(self, transition: Transition) -> None:
        """Make the transition: the mask changes, and weights that are not kept become zero."""
        self.fill_where_not_(transition.kept, self.weight)
        mask = shard_like(transition.mask.view(self.weight.shape), self.weight)
        self.mask.copy_(mask)
        self._live = transition.live
        self._forget_positions()
        self._ever |= self._pack(mask)
        self.last_dropped = transition.dropped
        self.last_grown = transition.grown

    def _place_of_weight(self) -> tuple[torch.device, tuple[int, ...], tuple[Any, ...] | None]:
        return self.weight.device, self.weight.stride(), placement(self.weight)

    def _check_placement(self, tensor: Tensor) -> None:
        if placement(tensor) != self._place[2]:
            raise TypeError(
                f"a tensor that belongs to {self.name!r} (its gradient or optimizer state) is "
                f"sharded as {placement(tensor)}, but the weight as {self._place[2]}."
            )

    def _set_mask(self, mask: Tensor) -> None:
        self.mask.copy_(shard_like(mask, self.weight))
        self._live = int(whole(self.mask).sum())
        self._forget_positions()

    def _set_ever_live(self, ever_live: Tensor | None) -> None:
        if ever_live is None:
            self._ever = self._pack(self.mask)
        elif ever_live.dtype == torch.bool:
            self._ever = self._pack(shard_like(ever_live, self.weight))
        elif self.is_sharded:
            bits = unpack(ever_live, self.numel).view(self.weight.shape)
            self._ever = self._pack(shard_like(bits, self.weight))
        else:
            self._ever = ever_live.to(self.mask.device, copy=True)

    def _pack(self, mask: Tensor) -> Tensor:
        return pack(local(mask).reshape(-1))

    def _forget_positions(self) -> None:
        self._positions: Tensor | None = None
        self._offsets: tuple[tuple[int, ...], Tensor] | None = None

    def _live_positions(self) -> Tensor:
        if self._positions is None:
            self._positions = live_indices(whole(self.mask).reshape(-1), self._live)
        return self._positions

    def _storage_offsets(self) -> Tensor:
        """Return where each live weight lies in memory, in logical order of the weights."""
        if self.weight.is_contiguous():
            return self._live_positions()
        stride = self.weight.stride()
        if self._offsets is None or self._offsets[0] != stride:
            remainder = self._live_positions()
            offsets = torch.zeros_like(remainder)
            for size, step in zip(reversed(self.weight.shape), reversed(stride), strict=True):
                offsets += remainder % size * step
                remainder = remainder // size
            self._offsets = (stride, offsets)
        return self._offsets[1]

    def _in_weight_layout(self, tensor: Tensor) -> bool:
        stride = tensor.stride()
        return stride == self.weight.stride() and _is_dense(tuple(tensor.shape), stride)


def _storage_order(tensor: Tensor) -> Tensor:
    return tensor.view(-1) if tensor.is_contiguous() else tensor.as_strided((tensor.numel(),), (1,))


@lru_cache(maxsize=4096)
def _is_dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether a tensor of these strides fills its memory without gaps or overlaps."""
    expected = 1
    for step, size in sorted(zip(stride, shape, strict=True)):
        if size == 1:
            continue
        if step != expected:
            return False
        expected *= size
    return True
