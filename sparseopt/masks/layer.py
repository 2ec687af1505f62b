"""``SparseLayer``: one weight, and which of its entries are live."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from sparseopt.distributed.dtensor import (
    full_tensor,
    local,
    placement,
    shard_like,
    sums_over_shards,
)
from sparseopt.masks.indices import count_true, index_dtype, live_indices, mark, where
from sparseopt.masks.live_copies import LiveCopies, live_copies_for, word_bits
from sparseopt.masks.memory_layout import Layout, clear_, fill_where_false_, write_only_
from sparseopt.masks.write_watch import WriteWatch
from sparseopt.utils.bits import pack, popcounts, unpack

__all__ = ["SparseLayer", "follow_weights"]

#: Up to this density a layer keeps only the positions of its live weights. At four bytes a live
#: weight, positions are no larger than a mask of one byte per weight. To mask a tensor, the layer
#: saves the live entries, clears the tensor and writes the entries back; that moves less memory
#: than a pass over the tensor and a mask.
INDEX_UP_TO: Final = 0.25
#: Attributes that were public in 0.1.0 and are for the optimizer alone.
PRIVATE: Final = frozenset(
    {
        "clear_dropped_",
        "commit",
        "ever_live_bits",
        "follow_weight",
        "forget_positions",
        "mask_",
        "rebind",
        "replace_",
        "restore",
        "retain_",
        "scatter_",
    }
)
#: Up to this many weights, one pass with a mask takes less time than several calls.
SMALL: Final = 1 << 12


class SparseLayer:
    """One weight and the mask that says which of its entries are live.

    Positions are logical (row-major over the shape), whatever the weight's memory format. A layer
    has no reference to the method that moves it or to the optimizer that trains it.

    Up to a density of a quarter a layer keeps the positions of its live weights, four bytes each.
    Above that it keeps a mask of one byte per weight, and also positions while live state needs
    them. In both cases it keeps one bit per weight for "was ever live". A layer of up to 4096
    weights also keeps the inverse of its mask, one byte per weight: with it, one call masks a
    gradient. Where the kernels copy live entries, the layer also keeps the mask as one bit per
    weight.

    A weight may be sharded (a DTensor). Then the layer keeps a mask that is sharded alike. All
    counts and positions refer to the full weight. :meth:`gather`, :meth:`positions`,
    :attr:`ever_live` and rebinding are collective calls.

    Other threads and processes may read the weight at any moment. So every function that writes to
    the weight writes each entry at most once, with its final value: no reader ever sees a live
    weight become zero for a moment.

    Attributes:
        name: the parameter's name.
        weight: the parameter, dense in memory, zero where it is not live.
        target: the live count at the end of training. Methods that move live weights between
            layers, or compare magnitudes across layers, meet only the sum of the targets. A
            layer whose target is all its weights is dense: it is listed, and never updated.
        norm_dim: under weight norm, the dimension along which each slice of the weight is divided
            by its norm, or -1 if the full weight is one slice; ``None`` without weight norm. Every
            slice keeps a live weight.
        live: number of live weights; read only.
        is_full: whether every weight is live now; read only.
        mask_version: a counter that rises with every change of the mask: an update, a checkpoint, a
            weight that was moved or replaced. Whatever is derived from the mask is stale as soon as
            the counter has changed.
        last_dropped: number of weights dropped by the last update.
        last_grown: number of weights grown by the last update.

    Example:
        >>> import torch
        >>> from sparseopt import SparseOptimizer
        >>> model = torch.nn.Linear(32, 16)
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> layer = SparseOptimizer(sgd, model, density=0.25, total_steps=1000).layers[0]
        >>> layer
        SparseLayer('weight', 16x32, live=128/512)
        >>> layer.mask.shape, layer.gather(layer.weight).shape
        (torch.Size([16, 32]), torch.Size([128]))
    """

    # Layers in a pickle of 0.1.0 lack this attribute.
    norm_dim: int | None = None

    def __init__(
        self,
        name: str,
        weight: torch.nn.Parameter,
        mask: Tensor,
        target: int,
        norm_dim: int | None = None,
    ) -> None:
        self.name = name
        self.weight = weight
        self.target = target
        self.norm_dim = norm_dim
        self.last_dropped = 0
        self.last_grown = 0
        self.mask_version = 0
        self.live: int
        self.is_full: bool
        self._mask: Tensor | None
        self._index: Tensor | None
        self._dropped: Tensor | None
        self._bits: Tensor | None
        self._watch = WriteWatch()
        self._note_place()
        self._set_mask(mask)
        self._ever = self._pack(shard_like(mask, weight)).to(weight.device)

    def __getattr__(self, name: str) -> Any:
        if name not in PRIVATE:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        warnings.warn(
            f"SparseLayer.{name} is for the optimizer alone, and a later version will not have it: "
            "set_masks() changes masks.",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(self, f"_{name}")

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.weight.shape))
        return f"SparseLayer({self.name!r}, {shape}, live={self.live}/{self.numel})"

    @property
    def numel(self) -> int:
        """Number of weights."""
        return self.weight.numel()

    @property
    def mask(self) -> Tensor:
        """Bool, of the weight's shape, true where live.

        This is a new tensor at every call: writing to it has no effect.
        """
        mask = self._present_mask()
        return mask.clone() if mask is self._mask else mask

    def _present_mask(self) -> Tensor:
        """Return :attr:`mask`, or the tensor that the layer keeps, to read only."""
        if not self.is_sharded:
            self._follow_weight()
        if self._mask is not None:
            return self._mask
        mask = torch.zeros_like(self.weight, dtype=torch.bool, requires_grad=False)
        if self.is_full:
            return mask.fill_(True)
        # The memory layout of a weight that was moved may differ from the layout noted here.
        flat = self._layout.flat(mask)
        flat.scatter_(0, self._offsets(), True)
        self._layout.put_back_(mask, flat)
        return mask

    @property
    def density(self) -> float:
        """Live weights over all weights, in (0, 1]."""
        return self.live / self.numel

    @property
    def is_dense(self) -> bool:
        """Whether the layer stays dense throughout training."""
        return self.target == self.numel

    @property
    def norm_slices(self) -> int:
        """Number of slices that weight norm divides by their norms; 0 without weight norm."""
        if self.norm_dim is None:
            return 0
        return 1 if self.norm_dim == -1 else self.weight.shape[self.norm_dim]

    @property
    def droppable(self) -> int:
        """Number of live weights that an update can drop.

        Under weight norm every slice keeps one live weight.
        """
        return self.live - self.norm_slices

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
    def _ever_live_bits(self) -> Tensor:
        """Which weights were ever live, as uint8 with one bit per weight, ``(ceil(numel / 8),)``.

        If the weight is sharded, it is a bool tensor of the weight's shape, sharded alike.
        """
        if not self.is_sharded:
            return self._ever
        ever = torch.empty_like(self.weight, dtype=torch.bool, requires_grad=False)
        part = local(ever)
        part.copy_(unpack(self._ever, part.numel()).view(part.shape))
        return ever

    def _restore(self, mask: Tensor | None, ever_live_bits: Tensor | None, target: int) -> None:
        """Load this layer's state from a checkpoint, without writing to the weight.

        Args:
            mask: bool, of the weight's shape; ``None`` if every weight is live.
            ever_live_bits: the saved ``_ever_live_bits``, sharded or not; ``None`` if every weight
                is live.
            target: the saved ``target``.
        """
        if mask is None:
            mask = torch.ones_like(self.weight, dtype=torch.bool, requires_grad=False)
        self._set_mask(mask)
        self._set_ever_live(ever_live_bits)
        self.target = target

    def _follow_weight(self) -> None:
        """Bring mask and positions to the weight's device and memory format.

        Both may have changed, as after ``model.to(...)``. A dense layer follows a new shape too.

        Raises:
            ValueError: if the weight of a sparse layer has another shape now.
        """
        if self.weight.shape != self._layout.shape:
            self._follow_shape()
        weight, (device, stride, sharding) = self.weight, self._place
        # This runs at every step; for a plain weight these two comparisons are cheap.
        if sharding is None and type(weight) is self._weight_type:
            if weight.device == device and weight.stride() == stride:
                return
        elif self._place == self._place_of_weight():
            return
        mask = self._mask
        positions = None if mask is not None else self.positions()
        self._note_place()
        self._ever = self._ever.to(self.weight.device)
        if mask is not None:
            self._set_mask(mask)
        else:
            assert positions is not None
            self._set_positions(positions.to(self.weight.device))

    def _follow_shape(self) -> None:
        if not (self.is_full and self.target == self.live):
            self._check_shape(self.weight)
        self._note_place()
        self._restore(None, None, self.numel)

    def _rebind(self, weight: torch.nn.Parameter) -> None:
        """Replace the weight by ``weight``, of the same shape: a framework sharded the model."""
        mask, ever_live = full_tensor(self._present_mask()), full_tensor(self._ever_live_bits)
        self.weight = weight
        self._note_place()
        self._set_mask(mask)
        self._set_ever_live(ever_live)

    @property
    def is_sharded(self) -> bool:
        """Whether the weight is a DTensor, of which each rank holds a part."""
        return self._place[2] is not None

    def positions(self) -> Tensor:
        """Return the positions of live weights, ascending, ``(live,)``: int32 if wide enough.

        Otherwise they are int64. Do not write to the tensor: for a contiguous weight it is the
        layer's own.
        """
        if self.is_full:
            dtype = index_dtype(self.numel)
            return torch.arange(self.numel, dtype=dtype, device=self.weight.device)
        offsets = self._offsets()
        return offsets if self._layout.is_logical else self._layout.positions(offsets)

    def _flat(self, tensor: Tensor) -> Tensor:
        """Return the entries of a tensor of the weight's shape in the weight's memory order, 1-D.

        It is a view if the tensor has the weight's memory layout.
        """
        return self._layout.flat(tensor)

    def _lies_without_gaps(self) -> bool:
        """Whether ``_flat()`` of the weight is a view, in this layer's memory order."""
        return not self.is_sharded and self._layout.has(self.weight)

    def _copies_in_threads(self) -> bool:
        """Whether :meth:`gather` and ``_replace_()`` of the weight run in several threads."""
        if self.is_full or self.is_sharded:
            return False
        return self._copies_for(self._layout.flat(self.weight.detach())) is not None

    def _forget_positions(self) -> None:
        """Free the positions of a layer that keeps a mask; they are computed again when needed."""
        if self._mask is not None:
            self._index = None

    def _mask_(self, tensor: Tensor, fill: float = 0.0) -> None:
        """Write ``fill`` into a tensor of the weight's shape wherever the mask is false."""
        self._check_shape(tensor)
        if self.is_full or (fill == 0.0 and self._keep_(tensor)):
            return
        if self.numel <= SMALL and not self.is_sharded and tensor.grad_fn is None:
            if self._dropped is None:
                self._dropped = ~self._present_mask()
            tensor.detach().masked_fill_(self._dropped, fill)
        elif self._mask is None and tensor.grad_fn is None:
            tensor = tensor.detach()
            flat = self._layout.flat(tensor)
            self._overwrite_(tensor, flat, flat.index_select(0, self._offsets()), fill)
        elif self.is_sharded:
            self._check_placement(tensor)
            fill_where_false_(local(tensor), local(self._present_mask()), fill)
        else:
            fill_where_false_(tensor, self._present_mask(), fill)

    def _retain_(self, tensor: Tensor, kept: Tensor, fill: float = 0.0) -> None:
        """Write ``fill`` into all entries of a tensor except the live weights that are ``kept``.

        Args:
            tensor: the tensor, of the weight's shape.
            kept: bool, ``(live,)``.
            fill: the value.
        """
        if self.is_sharded or tensor.grad_fn is not None:
            flat = torch.zeros(self.numel, dtype=torch.bool, device=kept.device)
            flat.scatter_(0, self.positions(), kept)
            stays = shard_like(flat.view(self.weight.shape), self.weight)
            fill_where_false_(local(tensor), local(stays), fill)
        else:
            values = where(kept, self.gather(tensor), fill)
            self._scatter_(tensor.detach().fill_(fill), values)

    def gather(self, tensor: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Return the live entries of a tensor of the weight's shape: ``(live,)``, logical order.

        Args:
            tensor: what to read.
            out: where to write them, ``(live,)``; by default a new tensor.

        Raises:
            ValueError: if ``tensor`` does not have the shape that the weight had when it was
                masked.
        """
        self._check_shape(tensor)
        # detach() costs a tenth of a no_grad() block, and this runs for every layer at every step.
        tensor = full_tensor(tensor) if self.is_sharded else tensor.detach()
        if self.is_full:
            flat = tensor.reshape(-1)
            return flat.clone() if out is None else out.copy_(flat)
        flat = self._layout.flat(tensor)
        if out is None:
            out = flat.new_empty(self.live)
        copies = self._copies_for(flat, out)
        if copies is None:
            return torch.index_select(flat, 0, self._offsets(), out=out)
        copies.gather(self._word_bits(), flat, out)
        return out

    def _gather_two(self, first: Tensor, second: Tensor, out: Tensor, second_out: Tensor) -> None:
        """Gather two tensors, in less time than one after the other; see :meth:`gather`."""
        if not (self.is_full or self.is_sharded):
            flat, other = (self._layout.flat(tensor.detach()) for tensor in (first, second))
            copies = self._copies_for(flat, out, other, second_out)
            if copies is not None:
                copies.gather(self._word_bits(), flat, out, other, second_out)
                return
        self.gather(first, out=out)
        self.gather(second, out=second_out)

    def _scatter_(self, tensor: Tensor, values: Tensor) -> None:
        """Write ``values``, ``(live,)``, into the live entries of a tensor of this shape."""
        tensor = tensor.detach()
        if self.is_full:
            tensor.copy_(values.view(tensor.shape))
            return
        flat = self._layout.flat(tensor)
        flat.scatter_(0, self._offsets(), values)
        self._layout.put_back_(tensor, flat)

    def _replace_(self, values: Tensor) -> None:
        """Make ``values``, ``(live,)``, the weight's live entries, and all others zero.

        The other entries are zero already, and not written, unless other code wrote to the weight.
        """
        if self.is_sharded:
            local(self.weight).copy_(local(self.expand(values)))
        elif self.is_full:
            self._scatter_(self.weight, values)
        else:
            self._write_(values)

    def _clear_dropped_(self) -> None:
        """Set all weights that are not live to zero."""
        if self._mask is not None or self.is_full or self.weight.grad_fn is not None:
            self._mask_(self.weight)
        else:
            self._watch.forget()
            self._write_(self.gather(self.weight))

    @torch.no_grad()
    def expand(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """Return a tensor in the weight's shape and layout with ``values`` at the live positions.

        ``values`` is ``(live,)``. Entries that are not live are ``fill``.
        """
        if self.is_sharded:
            flat = values.new_full((self.numel,), fill)
            flat.scatter_(0, self.positions(), values)
            return shard_like(flat.view(self.weight.shape), self.weight)
        dense = torch.full_like(self.weight, fill, dtype=values.dtype, requires_grad=False)
        self._scatter_(dense, values)
        return dense

    @torch.no_grad()
    def _commit(
        self,
        positions: Tensor,
        kept: Tensor,
        *,
        start: Tensor | None = None,
        dropped: int = 0,
        grown: int = 0,
    ) -> None:
        """Make the weights at ``positions`` the live ones, and all others zero.

        Args:
            positions: ascending, ``(live,)``; the dtype of :meth:`positions`.
            kept: which of them keep their value, bool, ``(live,)``.
            start: the first values of the weights that are not kept, of the weight's shape; zero by
                default.
            dropped: how many weights the update dropped.
            grown: how many it grew.
        """
        if self.is_sharded:
            flat = mark(positions, self.numel).view(self.weight.shape)
            self._set_mask(shard_like(flat, self.weight))
        else:
            self._set_positions(positions)
        values = self.gather(self.weight)
        if start is None:
            values = where(kept, values, 0.0)
        else:
            values = torch.where(kept, values, self.gather(start))
        if self.weight.grad_fn is None:
            self._replace_(values)
        else:
            # One operation of the step's graph; the first values of new weights stay outside of it.
            self._retain_(self.weight, kept)
            if start is not None:
                self._scatter_(self.weight, values)
        self._ever |= self._pack(self._present_mask())
        self.last_dropped = dropped
        self.last_grown = grown

    def _place_of_weight(self) -> tuple[torch.device, tuple[int, ...], tuple[Any, ...] | None]:
        return self.weight.device, self.weight.stride(), placement(self.weight)

    def _note_place(self) -> None:
        self._place = self._place_of_weight()
        self._weight_type = type(self.weight)
        self._layout = Layout(self.weight)

    def _overwrite_(self, tensor: Tensor, flat: Tensor, values: Tensor, fill: float) -> None:
        """Write ``values`` into the live entries of a tensor, and ``fill`` into all others.

        Args:
            tensor: the tensor, of the weight's shape.
            flat: ``self._layout.flat(tensor)``.
            values: the live entries, ``(live,)``.
            fill: the value of the other entries.
        """
        offsets = self._offsets()
        try:
            if fill == 0.0:
                clear_(flat)
            else:
                flat.fill_(fill)
        finally:
            # A KeyboardInterrupt between the two calls must not leave the tensor empty.
            flat.scatter_(0, offsets, values)
        self._layout.put_back_(tensor, flat)

    def _write_(self, values: Tensor) -> None:
        """Write the live entries of the weight, and zeros to all others, each at most once.

        The kernels write every entry in one pass. Without them, if the other entries are known to
        be zero still, only live entries are written; otherwise all are, block by block.
        """
        weight = self.weight.detach()
        flat = self._layout.flat(weight)
        copies = self._copies_for(flat, values)
        if copies is not None:
            copies.write(self._word_bits(), values, flat)
        elif self._watch.is_untouched(weight, flat, self._offsets()):
            flat.scatter_(0, self._offsets(), values)
        else:
            write_only_(flat, self._offsets(), values, ascending=self._layout.is_logical)
        self._layout.put_back_(weight, flat)
        self._watch.note(weight)

    def _keep_(self, tensor: Tensor) -> bool:
        """Set entries that are not live to zero, if the kernels can; return whether they did."""
        if self.numel <= SMALL or self.is_sharded or tensor.grad_fn is not None:
            return False
        tensor = tensor.detach()
        # Elsewhere flat() would be a copy, made in vain if no kernel takes it.
        if not (tensor.is_cpu and self._layout.has(tensor)):
            return False
        flat = self._layout.flat(tensor)
        copies = self._copies_for(flat)
        if copies is not None:
            copies.keep(self._word_bits(), flat)
        return copies is not None

    def _copies_for(self, *tensors: Tensor) -> LiveCopies | None:
        """Return the kernels that copy live entries; ``None`` where torch has to copy them.

        The kernels read bits in memory order and values in logical order, so the two orders must be
        the same. A sharded mask has no bits.
        """
        is_plain = self._layout.is_logical and not self.is_sharded
        return live_copies_for(*tensors) if is_plain else None

    def _word_bits(self) -> Tensor:
        if self._bits is None:
            self._bits = word_bits(self._present_mask().view(-1))
        return self._bits

    def _check_shape(self, tensor: Tensor) -> None:
        # The kernels read and write as many entries as the mask has, whatever the tensor's size.
        if tensor.shape != self._layout.shape:
            raise ValueError(
                f"layer {self.name!r} has a mask of the shape {tuple(self._layout.shape)}, which "
                f"does not fit a tensor of the shape {tuple(tensor.shape)}. If the weight has "
                "changed its shape in place: masks can't follow. Give the module a new "
                "torch.nn.Parameter, and pass it to add_param_group() or to a new SparseOptimizer."
            )

    def _check_placement(self, tensor: Tensor) -> None:
        if placement(tensor) != self._place[2]:
            raise TypeError(
                f"a tensor that belongs to {self.name!r} (its gradient or optimizer state) is "
                f"sharded as {placement(tensor)}, but the weight as {self._place[2]}."
            )

    def _set_mask(self, mask: Tensor) -> None:
        """Set the mask: bool, of the weight's shape, on any device, sharded or not."""
        self._dropped = None
        self._watch.forget()
        if self.is_sharded:
            self.mask_version += 1
            self._mask = torch.empty_like(self.weight, dtype=torch.bool, requires_grad=False).copy_(
                shard_like(mask, self.weight)
            )
            self.live = count_true(full_tensor(self._mask))
            self.is_full = self.live == self.numel
            self._index = self._bits = None
            return
        flat = full_tensor(mask).to(self.weight.device).reshape(-1)
        self._set_positions(live_indices(flat, count_true(flat)))

    def _set_positions(self, positions: Tensor) -> None:
        """Set the mask by the positions of live weights, ascending; see :data:`INDEX_UP_TO`.

        Invariant: a full layer keeps neither mask nor index. Any other layer keeps an index in
        memory order, or, above the limit, a mask. Everything derived from the old mask is dropped.
        """
        self.mask_version += 1
        self.live = positions.numel()
        self.is_full = self.live == self.numel
        self._mask = self._index = self._dropped = self._bits = None
        self._watch.forget()
        if self.is_full:
            return
        self._index = self._layout.offsets(positions)
        if self.density > INDEX_UP_TO:
            self._mask = self._present_mask()
            self._index = None

    def _offsets(self) -> Tensor:
        """Return the indices of live weights in ``_flat()``, in the order of :meth:`positions`.

        If the weight is sharded, these are positions in the full weight. Do not write to them.
        """
        if self._index is None:
            assert self._mask is not None
            positions = live_indices(full_tensor(self._mask).reshape(-1), self.live)
            self._index = self._layout.offsets(positions)
        return self._index

    def _set_ever_live(self, ever_live: Tensor | None) -> None:
        """Store which weights were ever live, given as bools or packed; None means the mask."""
        if ever_live is None:
            self._ever = self._pack(self._present_mask())
        elif ever_live.dtype == torch.bool:
            self._ever = self._pack(shard_like(ever_live, self.weight))
        elif self.is_sharded:
            # A loader of torch may have spread the packed bits over the ranks.
            bits = unpack(full_tensor(ever_live), self.numel).view(self.weight.shape)
            self._ever = self._pack(shard_like(bits, self.weight))
        else:
            self._ever = ever_live.to(self.weight.device, copy=True)

    def _pack(self, mask: Tensor) -> Tensor:
        return pack(local(mask).reshape(-1))


def follow_weights(layers: Iterable[SparseLayer]) -> None:
    """Bring all ``layers`` to their weights' devices and memory formats."""
    for layer in layers:
        layer._follow_weight()
