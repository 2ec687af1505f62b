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

from sparseopt.optimizer.state.gather import Part

__all__ = ["for_each", "shares"]

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
