"""One run on many devices: the processes that ``torchrun`` starts, and what they have to agree on.

Every function does the obvious thing where there is one process only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.cifar.images.batches import Share

Value = TypeVar("Value")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train one model together."""

    rank: int = 0
    processes: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and talks to the user."""
        return self.rank == 0

    @property
    def share(self) -> Share:
        """This process's part of every batch."""
        return Share(self.rank, self.processes)

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model to train: gradients are averaged over the processes."""
        if self.processes == 1:
            return model
        # Without an index, as on the CPU, DDP takes the module's own device.
        ids = None if device.index is None else [device.index]
        return DistributedDataParallel(model, device_ids=ids)

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.processes > 1:
            dist.all_reduce(value)
        return value

    def any(self, value: bool, device: torch.device) -> bool:
        """Whether it is true in any process."""
        if self.processes == 1:
            return value
        return bool(self.sum(torch.tensor(float(value), device=device)))

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes, by rank."""
        if self.processes == 1:
            return [value]
        values: list[Value | None] = [None] * self.processes
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def from_first(self, value: Value) -> Value:
        """The first process's value."""
        if self.processes == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with the first process's."""
        if self.processes > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.processes > 1:
            dist.barrier()


ALONE = Ranks()


def device_for(ranks: Ranks) -> torch.device:
    """The GPU of this process, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if ranks.processes == 1:
        return torch.device("cuda")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Join the other processes that ``torchrun`` has started, if it has started this one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Objects and CPU tensors go over gloo whatever the model is trained over.
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
