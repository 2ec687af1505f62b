"""Doing the same for many layers on all cores.

Torch gathers from a 1-D tensor in one thread, and one core does not exhaust the memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Final

import torch

from sparseopt.layers import SparseLayer

__all__ = ["for_each_layer", "shares"]

#: Live weights from which on waking a thread costs less than it saves.
WORTH_A_THREAD: Final = 1 << 17


def shares(layers: Sequence[SparseLayer]) -> list[list[int]]:
    """Return the indices of ``layers`` in as many parts as threads are worth, about equally heavy.

    One part where there is nothing to gain: on an accelerator, whose calls only queue, or where
    torch is told to use one thread.
    """
    live = sum(layer.live for layer in layers)
    count = min(torch.get_num_threads(), live // WORTH_A_THREAD, len(layers))
    if count < 2 or layers[0].weight.device.type != "cpu":
        return [list(range(len(layers)))]
    parts: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for index in sorted(range(len(layers)), key=lambda index: -layers[index].numel):
        lightest = loads.index(min(loads))
        parts[lightest].append(index)
        loads[lightest] += layers[index].numel
    return parts


def for_each_layer(function: Callable[[int], None], parts: Sequence[Sequence[int]]) -> None:
    """Call ``function`` for every index in ``parts``, each part in a thread of its own.

    ``function`` should not use torch's own threads: each thread here would have a team of them.
    """

    def run(part: Sequence[int]) -> None:
        for index in part:
            function(index)

    mine, *others = parts
    running = [_threads().submit(run, part) for part in others]
    run(mine)
    for thread in running:
        thread.result()


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="sparseopt")


if hasattr(os, "register_at_fork"):
    # A forked process has none of the threads that its parent started.
    os.register_at_fork(after_in_child=_threads.cache_clear)
