"""Two real processes in one process group (gloo), started once and used by many tests."""

import io
import os
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.support.processes import forkserver

RANKS = 2
LIMIT_S = 300
# A shorter timeout, so that a rank that waits for a broken one raises the error itself.
COLLECTIVE_LIMIT = timedelta(seconds=60)

needs_fork = pytest.mark.skipif(os.name != "posix", reason="needs processes that can be forked")
needs_gloo = pytest.mark.skipif(
    os.name != "posix" or not dist.is_available() or not dist.is_gloo_available(),
    reason="needs a torch with gloo, and processes that can be forked",
)


@cache
def two_ranks() -> "Ranks":
    """The two processes of this test session."""
    return Ranks()


class Ranks:
    """Processes that run one function together, each as one rank."""

    def __init__(self) -> None:
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        context = forkserver()
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(RANKS):
            here, there = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, self._store.port, there), daemon=True
            )
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> list[Any]:
        """The result of a module's `function(*args, **kwargs)` on each rank.

        It returns what `torch.save` and `torch.load` take: tensors and plain values.
        """
        for pipe in self._pipes:
            pipe.send((function, args, kwargs))
        answers: dict[Connection, Any] = {}
        while waiting := [pipe for pipe in self._pipes if pipe not in answers]:
            ready = wait(waiting, LIMIT_S)
            if not ready:
                self._give_up("no rank answers")
            for pipe in ready:
                answer = self._receive(pipe)
                if "error" in answer:
                    self._give_up(answer["error"])
                answers[pipe] = answer["value"]
        return [answers[pipe] for pipe in self._pipes]

    def _receive(self, pipe: Connection) -> dict[str, Any]:
        try:
            return torch.load(io.BytesIO(pipe.recv_bytes()))
        except EOFError:
            return {"error": f"rank {self._pipes.index(pipe)} died"}

    def _give_up(self, reason: str) -> None:
        for process in self._processes:
            process.kill()
        two_ranks.cache_clear()
        pytest.fail(reason)


def _serve(rank: int, port: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error", UserWarning)
    # Tests are short, and so are their schedules.
    warnings.filterwarnings("ignore", "delta_t=.* of the steps move masks")
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=RANKS, timeout=COLLECTIVE_LIMIT
    )
    while True:
        try:
            function, args, kwargs = pipe.recv()
        except EOFError:
            return
        try:
            answer = {"value": function(*args, **kwargs)}
        except Exception:
            answer = {"error": f"rank {rank}:\n{traceback.format_exc()}"}
        buffer = io.BytesIO()
        torch.save(answer, buffer)
        pipe.send_bytes(buffer.getvalue())
