"""Gathers the live weights of one layer, or of many small layers at once, on all cores.

For a small layer, a call of torch takes longer than its work. So small layers are copied into one
temporary dense tensor, with one call for all of them, and their live weights are gathered from that
tensor.

Torch gathers from a 1-D tensor in one thread, and one core does not use the full memory bandwidth.
So large layers are divided among threads.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Final, TypeAlias

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors
from torch.nn import Parameter

from sparseopt.masks.indices import concat_positions, index_dtype
from sparseopt.masks.layer import SparseLayer

__all__ = [
    "GatherMany",
    "GatherOne",
    "Member",
    "Part",
    "WholeParameter",
    "for_each",
    "gradient_of",
    "parts_of",
    "shares",
]

#: Up to this many weights in a layer, copying all of them costs less than the calls that it saves.
CPU_SMALL: Final = 1 << 12
#: The same on an accelerator, where a launch takes as long as copying far more weights.
ACCELERATOR_SMALL: Final = 1 << 18
#: Weights of a bundle: few enough to stay in the cache, and enough that the cost of a call does not
#: matter.
CPU_BUNDLE: Final = 1 << 17
#: The same on an accelerator, where it bounds the temporary memory of a step.
ACCELERATOR_BUNDLE: Final = 1 << 22
#: A bundle of at least this many layers makes fewer calls than it saves.
WORTH_A_BUNDLE: Final = 2


class WholeParameter:
    """A small dense parameter, such as a bias, as a member of a pool: all its entries are live.

    Args:
        weight: the parameter, contiguous, of at least one dimension.

    Attributes:
        live: number of entries.
        numel: the same.
        mask_version: always 0, because there is no mask.
    """

    mask_version: Final = 0

    def __init__(self, weight: Parameter) -> None:
        self.weight = weight
        self.live = self.numel = weight.numel()

    def _offsets(self) -> Tensor:
        """Return the indices of all entries, as for a :class:`SparseLayer`."""
        return torch.arange(self.numel, dtype=index_dtype(self.numel), device=self.weight.device)

    def _flat(self, tensor: Tensor) -> Tensor:
        """Return the entries of a tensor of the weight's shape, 1-D."""
        return tensor.reshape(-1)

    def _lies_without_gaps(self) -> bool:
        """Whether ``_flat()`` of the weight is a view."""
        return self.weight.is_contiguous()


#: Everything that can be stepped in a pool.
Member: TypeAlias = SparseLayer | WholeParameter


class Part(ABC):
    """Members of a pool whose live weights are contiguous in the pool's tensors.

    Args:
        members: whole parameters, and layers that are not full; of one dtype and on one device.

    Attributes:
        live: number of live weights.
        numel: number of weights.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = list(members)
        self.live = sum(member.live for member in members)
        self.numel = sum(member.numel for member in members)

    def fits(self) -> bool:
        """Whether the members' weights still have the memory and the layout that this needs."""
        return True

    def works_in_threads(self) -> bool:
        """Whether this part uses several threads itself, so that it needs no thread of its own."""
        return False

    @abstractmethod
    def gather(self, weights: Tensor, gradients: Tensor) -> None:
        """Write live weights and their gradients to two tensors, each ``(live,)``.

        All members must have gradients.
        """

    @abstractmethod
    def put_back(self, weights: Tensor) -> None:
        """Make ``weights``, ``(live,)``, the live weights of the members, and all others zero.

        Each entry is written at most once, with its final value; see :class:`SparseLayer`.
        """


class GatherOne(Part):
    """One layer."""

    def __init__(self, layer: SparseLayer) -> None:
        super().__init__([layer])
        self._layer = layer

    def works_in_threads(self) -> bool:
        """Whether the layer uses several threads; see :meth:`Part.works_in_threads`."""
        return self._layer._copies_in_threads()

    def gather(self, weights: Tensor, gradients: Tensor) -> None:
        """Read the layer; see :meth:`Part.gather`."""
        layer = self._layer
        layer._gather_two(layer.weight, gradient_of(layer), weights, gradients)

    def put_back(self, weights: Tensor) -> None:
        """Write to the layer; see :meth:`Part.put_back`."""
        self._layer._replace_(weights)


class GatherMany(Part):
    """Small members that lie in memory without gaps; see :class:`Part`.

    The positions of live weights in the concatenated members are kept, four bytes each. To compute
    them at every step would take a small network as long as the gathering itself.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        super().__init__(members)
        # Views, made once: for a small network, making them takes longer than copying the data.
        self._dense = [member._flat(member.weight.detach()) for member in members]
        self._are_logical = all(member.weight.is_contiguous() for member in members)
        self._places = [_place(member.weight) for member in members]
        self._numels = [member.numel for member in members]
        # Kept on the device, so that no step waits for a transfer.
        device = members[0].weight.device
        numels = torch.tensor(self._numels, device="cpu")
        self._starts = (numels.cumsum(0) - numels).to(device, torch.int32)
        self._counts = torch.tensor([member.live for member in members], device="cpu").to(device)
        self._versions: list[int] = []
        self._positions: Tensor

    def fits(self) -> bool:
        """Whether all weights have the same memory and strides as before; see :meth:`Part.fits`."""
        return all(
            _place(member.weight) == place
            for member, place in zip(self.members, self._places, strict=True)
        )

    def gather(self, weights: Tensor, gradients: Tensor) -> None:
        """Read all members; see :meth:`Part.gather`."""
        versions = [member.mask_version for member in self.members]
        if versions != self._versions:
            each = [member._offsets() for member in self.members]
            self._positions = concat_positions(each, self._starts, self._counts)
            self._versions = versions
        torch.index_select(torch.cat(self._dense), 0, self._positions, out=weights)
        torch.index_select(self._dense_gradients(), 0, self._positions, out=gradients)

    def put_back(self, weights: Tensor) -> None:
        """Write to all members; see :meth:`Part.put_back`."""
        final = weights.new_zeros(self.numel).scatter_(0, self._positions, weights)
        torch._foreach_copy_(self._dense, final.split_with_sizes(self._numels))

    def _dense_gradients(self) -> Tensor:
        gradients = [gradient_of(member).detach() for member in self.members]
        if self._are_logical:
            # One call does the same as the loop below, and Python is slow for a small network.
            together: Tensor = _flatten_dense_tensors(gradients)  # type: ignore[no-untyped-call]
            return together
        return torch.cat(
            [member._flat(own) for member, own in zip(self.members, gradients, strict=True)]
        )


def parts_of(members: Sequence[Member]) -> list[Part]:
    """Return parts that contain each member once: small members in bundles, all others alone.

    Args:
        members: whole parameters, and layers that are not full; of one dtype and on one device.
    """
    on_cpu = members[0].weight.device.type == "cpu"
    small, limit = (CPU_SMALL, CPU_BUNDLE) if on_cpu else (ACCELERATOR_SMALL, ACCELERATOR_BUNDLE)
    alone: list[SparseLayer] = []
    together: list[list[Member]] = [[]]
    for member in members:
        large = member.numel > small or not member._lies_without_gaps()
        if large and isinstance(member, SparseLayer):
            alone.append(member)
            continue
        if sum(other.numel for other in together[-1]) + member.numel > limit:
            together.append([])
        together[-1].append(member)
    layers = [member for member in together[-1] if isinstance(member, SparseLayer)]
    if len(layers) == len(together[-1]) < WORTH_A_BUNDLE:
        alone += layers
        together.pop()
    return [*map(GatherOne, alone), *map(GatherMany, together)]


def _place(weight: Tensor) -> tuple[int, tuple[int, ...]]:
    return weight.data_ptr(), weight.stride()


def gradient_of(member: Member) -> Tensor:
    """Return the gradient of a member's weight, which must not be ``None``."""
    gradient = member.weight.grad
    assert gradient is not None
    return gradient


#: From this many live weights, waking a thread costs less than it saves.
WORTH_A_THREAD: Final = 1 << 17


def shares(parts: Sequence[Part], device: torch.device) -> list[list[int]]:
    """Return the indices of ``parts`` in lists of about equal work, one list for each thread.

    The number of threads is the largest that pays off. There is one list where threads gain
    nothing: on an accelerator, whose calls only queue work, if torch is set to one thread, or if
    the parts use several threads themselves.
    """
    live = sum(part.live for part in parts)
    count = min(torch.get_num_threads(), live // WORTH_A_THREAD, len(parts))
    if count < 2 or device.type != "cpu" or any(part.works_in_threads() for part in parts):
        return [list(range(len(parts)))]
    found: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for index in sorted(range(len(parts)), key=lambda index: -parts[index].numel):
        lightest = loads.index(min(loads))
        found[lightest].append(index)
        loads[lightest] += parts[index].numel
    return found


def for_each(function: Callable[[int], None], indices: Sequence[Sequence[int]]) -> None:
    """Call ``function`` for every index, each list of indices in a thread of its own.

    ``function`` should not use torch's own threads: each thread here would start a team of them.
    """

    def run(mine: Sequence[int]) -> None:
        for index in mine:
            function(index)

    first, *others = indices
    running = [_threads().submit(run, other) for other in others]
    run(first)
    for thread in running:
        thread.result()


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="sparseopt")


if hasattr(os, "register_at_fork"):
    # A forked process has none of the threads that its parent started.
    os.register_at_fork(after_in_child=_threads.cache_clear)
