"""A data-parallel run large enough for near-ties, and its twin in one process."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sparseopt import SparseOptimizer
from tests.distributed.ddp_worker import batch_number
from tests.support.catalogue import build
from tests.support.nets import CLASSES, batch, make

STEPS, MAX_NORM, SEED = 48, 0.3, 7
NAMES = ("fc1.weight", "fc2.weight", "fc3.weight")
SETTINGS = {"density": 0.2, "total_steps": STEPS, "delta_t": 3}


@dataclass(frozen=True)
class Run:
    """What is trained.

    Attributes:
        method: The method.
        optimizer: The inner optimizer.
        echo: Weight of samples that count on one rank and against on the other, so that they
            cancel and leave their rounding behind.
    """

    method: str
    optimizer: str
    echo: float = 0.0

    def samples(self, rank: int, t: int) -> list[tuple[int, float]]:
        """The batches of a rank at step t, each with the weight of its samples."""
        echo = (batch_number(0, t, micro=1), self.echo if rank == 0 else -self.echo)
        return [(batch_number(rank, t), 1.0), *([echo] if self.echo else [])]


class WideNet(nn.Module):
    """Enough weights for scores that lie close together."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(108, 256)
        self.fc2 = nn.Linear(256, 256)
        self.fc3 = nn.Linear(256, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x.flatten(1))))))


def begin(run: Run, *, rank: int = 0) -> tuple[nn.Module, SparseOptimizer]:
    """The model and its optimizer; every rank calls it, or one process."""
    model = make(WideNet, seed=rank)
    # With its usual epsilon Adam makes a full step from the sign of a sum that is zero except for
    # rounding.
    options = {"eps": 1e-3} if run.optimizer == "AdamW" else {}
    inner = build(run.optimizer, model.parameters(), **options)
    return model, SparseOptimizer(inner, model, method=run.method, seed=SEED, **SETTINGS)


def loss_of(model: nn.Module, samples: list[tuple[int, float]]) -> torch.Tensor:
    """Weighted cross entropy, over the size of one batch."""
    batches = [batch(index) for index, _ in samples]
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    weights = torch.cat(
        [
            torch.full((len(y),), weight)
            for (_, y), (_, weight) in zip(batches, samples, strict=True)
        ]
    )
    return (weights * F.cross_entropy(model(x), y, reduction="none")).sum() / len(batches[0][1])


def clip(model: nn.Module) -> torch.Tensor:
    return nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)


def train(run: Run) -> dict[str, Any]:
    """Both ranks together: a checkpoint after every update, and the norm at every step."""
    rank = dist.get_rank()
    model, optimizer = begin(run, rank=rank)
    parallel = DistributedDataParallel(model)
    norms, updates = [], {}
    for t in range(1, STEPS + 1):
        optimizer.zero_grad()
        loss_of(parallel, run.samples(rank, t)).backward()
        norms.append(clip(model))
        updating = optimizer.is_update_step
        optimizer.step()
        if updating:
            updates[t] = checkpoint(parallel, optimizer)
    return {"norms": norms, "updates": updates, "final": checkpoint(parallel, optimizer)}


def checkpoint(parallel: DistributedDataParallel, optimizer: SparseOptimizer) -> dict[str, Any]:
    return copy.deepcopy({"model": parallel.state_dict(), "optimizer": optimizer.state_dict()})
