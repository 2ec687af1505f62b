"""Gathering the live weights of one layer, or of many small layers at once, on all cores.

A call of torch takes longer than its work for a small layer. So small layers are copied into one
dense tensor, with one call for all of them, and their live weights are taken from that tensor. It
exists for a moment only.

Torch gathers from a 1-D tensor in one thread, and one core does not exhaust the memory bandwidth;
so large layers are shared among threads.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from sparseopt.masks.indices import concat_positions
from sparseopt.masks.layer import SparseLayer

__all__ = ["GatherMany", "GatherOne", "Part", "for_each", "gradient_of", "parts_of", "shares"]

#: Weights of a layer up to which copying all of it costs less than the calls that this saves.
CPU_SMALL: Final = 1 << 12
#: On an accelerator a launch takes as long as copying far more.
ACCELERATOR_SMALL: Final = 1 << 18
#: Weights of a bundle: few enough to stay in the cache, enough to make what a call costs disappear.
CPU_BUNDLE: Final = 1 << 17
#: On an accelerator this bounds what a step needs for a moment.
ACCELERATOR_BUNDLE: Final = 1 << 22
#: Layers of a bundle from which on its own calls are fewer than those that it saves.
WORTH_A_BUNDLE: Final = 2


class Part(ABC):
    """Layers of a pool, none of them full, whose live weights lie in a row in the pool's tensors.

    Args:
        layers: the layers, all of one dtype and on one device.

    Attributes:
        live: number of live weights.
        numel: number of weights.
    """

    def __init__(self, layers: Sequence[SparseLayer]) -> None:
        self.layers = list(layers)
        self.live = sum(layer.live for layer in layers)
        self.numel = sum(layer.numel for layer in layers)

    def fits(self) -> bool:
        """Whether the layers' weights still are where, and as, this needs them."""
        return True

    @abstractmethod
    def gather(self, weights: Tensor, gradients: Tensor) -> None:
        """Write live weights and their gradients, which all layers have, to two ``(live,)``."""

    @abstractmethod
    def put_back(self, weights: Tensor) -> None:
        """Make ``weights``, ``(live,)``, the live weights of the layers, and all others zero.

        Each entry is written once at most, with its final value; see :class:`SparseLayer`.
        """


class GatherOne(Part):
    """One layer."""

    def __init__(self, layer: SparseLayer) -> None:
        super().__init__([layer])
        self._layer = layer

    def gather(self, weights: Tensor, gradients: Tensor) -> None:
        """Read the layer; see :meth:`Part.gather`."""
        self._layer.gather(self._layer.weight, out=weights)
        self._layer.gather(gradient_of(self._layer), out=gradients)

    def put_back(self, weights: Tensor) -> None:
        """Write to the layer; see :meth:`Part.put_back`."""
        self._layer.replace_(weights)


class GatherMany(Part):
    """Small layers that lie in memory in logical order; see :class:`Part`.

    The positions of live weights in all of them together are kept, four bytes each: to put them
    together at every step takes a small network as long as to gather by them.
    """

    def __init__(self, layers: Sequence[SparseLayer]) -> None:
        super().__init__(layers)
        # Kept on the device, so that nothing waits for them to come there.
        device = layers[0].weight.device
        self._numels = [layer.numel for layer in layers]
        numels = torch.tensor(self._numels, device="cpu")
        self._starts = (numels.cumsum(0) - numels).to(device, torch.int32)
        self._counts = torch.tensor([layer.live for layer in layers], device="cpu").to(device)
        self._versions: list[int] = []
        self._positions: Tensor

    def fits(self) -> bool:
        """Whether all weights are contiguous, and where they were; see :meth:`Part.fits`."""
        device = self._starts.device
        weights = [layer.weight for layer in self.layers]
        return all(weight.is_contiguous() and weight.device == device for weight in weights)

    @torch.no_grad()
    def gather(self, weights: Tensor, gradients: Tensor) -> None:
        """Read all layers; see :meth:`Part.gather`."""
        versions = [layer.mask_version for layer in self.layers]
        if versions != self._versions:
            each = [layer.positions() for layer in self.layers]
            self._positions = concat_positions(each, self._starts, self._counts)
            self._versions = versions
        dense = torch.cat([layer.weight.view(-1) for layer in self.layers])
        torch.index_select(dense, 0, self._positions, out=weights)
        dense = torch.cat([gradient_of(layer).reshape(-1) for layer in self.layers])
        torch.index_select(dense, 0, self._positions, out=gradients)

    @torch.no_grad()
    def put_back(self, weights: Tensor) -> None:
        """Write to all layers; see :meth:`Part.put_back`."""
        final = weights.new_zeros(self.numel).scatter_(0, self._positions, weights)
        dense = [layer.weight.view(-1) for layer in self.layers]
        torch._foreach_copy_(dense, torch.split(final, self._numels))


def parts_of(layers: Sequence[SparseLayer]) -> list[Part]:
    """Return parts that have each of ``layers`` once: small ones in bundles, all others alone.

    Args:
        layers: none of them full, all of one dtype and on one device.
    """
    on_cpu = layers[0].weight.device.type == "cpu"
    small, limit = (CPU_SMALL, CPU_BUNDLE) if on_cpu else (ACCELERATOR_SMALL, ACCELERATOR_BUNDLE)
    alone: list[SparseLayer] = []
    together: list[list[SparseLayer]] = [[]]
    for layer in layers:
        if layer.numel > small or not layer.weight.is_contiguous():
            alone.append(layer)
            continue
        if sum(member.numel for member in together[-1]) + layer.numel > limit:
            together.append([])
        together[-1].append(layer)
    if len(together[-1]) < WORTH_A_BUNDLE:
        alone += together.pop()
    return [*map(GatherOne, alone), *map(GatherMany, together)]


def gradient_of(layer: SparseLayer) -> Tensor:
    """Return the gradient of a layer's weight, which it has."""
    gradient = layer.weight.grad
    assert gradient is not None
    return gradient


#: Live weights from which on waking a thread costs less than it saves.
WORTH_A_THREAD: Final = 1 << 17


def shares(parts: Sequence[Part], device: torch.device) -> list[list[int]]:
    """Return the indices of ``parts`` in as many lists as threads are worth, about equally heavy.

    One list where there is nothing to gain: on an accelerator, whose calls only queue, or where
    torch is told to use one thread.
    """
    live = sum(part.live for part in parts)
    count = min(torch.get_num_threads(), live // WORTH_A_THREAD, len(parts))
    if count < 2 or device.type != "cpu":
        return [list(range(len(parts)))]
    found: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for index in sorted(range(len(parts)), key=lambda index: -parts[index].numel):
        lightest = loads.index(min(loads))
        found[lightest].append(index)
        loads[lightest] += parts[index].numel
    return found


def for_each(function: Callable[[int], None], indices: Sequence[Sequence[int]]) -> None:
    """Call ``function`` for every one of ``indices``, each list in a thread of its own.

    ``function`` should not use torch's own threads: each thread here would have a team of them.
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
