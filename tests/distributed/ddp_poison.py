"""Runs in which one gradient on one rank is infinite."""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from sparseopt import SparseOptimizer
from tests.distributed.ddp_worker import SETTINGS, STEPS, batch_number, masks_of, weights_of
from tests.support.catalogue import build
from tests.support.nets import loss_of, make

LAYER = "fc1.weight"
UPDATES = (4, 8)


@dataclass(frozen=True)
class Run:
    """What is trained, and what goes wrong on rank 1.

    Attributes:
        method: The method.
        steps: Steps at which a gradient of `LAYER` is infinite.
        where: Whether the gradient of a live or of a dropped weight is infinite.
        scaled: Whether a GradScaler is used, which leaves out steps with infinite gradients.
    """

    method: str
    steps: tuple[int, ...] = ()
    where: Literal["live", "dropped"] = "live"
    scaled: bool = False


class Poison:
    """A hook that makes one gradient of the layer infinite while it is armed."""

    def __init__(self, optimizer: SparseOptimizer, where: str):
        self.optimizer, self.where, self.armed = optimizer, where, False

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        if not self.armed:
            return gradient
        mask = self.optimizer.masks[LAYER]
        places = (mask if self.where == "live" else ~mask).flatten().nonzero()
        poisoned = gradient.clone()
        poisoned.view(-1)[places[:1]] = torch.inf
        return poisoned


def train(run: Run) -> dict[str, Any]:
    """Train, and record this rank's values at every step."""
    rank = dist.get_rank()
    model = make(seed=rank)
    parallel = DistributedDataParallel(model)
    optimizer = SparseOptimizer(
        build("AdamW", model.parameters()), parallel, method=run.method, seed=7, **SETTINGS
    )
    poison = Poison(optimizer, run.where)
    model.get_parameter(LAYER).register_hook(poison)
    scaler = torch.amp.GradScaler("cpu", enabled=run.scaled, init_scale=8.0)
    seen: dict[str, Any] = {"masks": [masks_of(optimizer)], "weights": [weights_of(model)]}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for t in range(1, STEPS + 1):
            poison.armed = rank == 1 and t in run.steps
            optimizer.zero_grad()
            scaler.scale(loss_of(parallel, batch_number(rank, t))).backward()
            scaler.step(optimizer)
            scaler.update()
            seen["masks"].append(masks_of(optimizer))
            seen["weights"].append(weights_of(model))
    seen["warnings"] = [str(warning.message) for warning in caught]
    seen["history"] = [vars(record) for record in optimizer.history]
    seen["steps"] = optimizer.steps
    return seen
