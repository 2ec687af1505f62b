"""Runs that continue on one process after two ranks, and on two ranks after one process."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sparseopt import SparseOptimizer
from tests.distributed.ddp_worker import SETTINGS, STEPS, batch_number, masks_of, weights_of
from tests.support.catalogue import build
from tests.support.looking import per_weight_state
from tests.support.nets import batch, loss_of, make

STOP = 6
RANKS = 2
RUNS = [("set", "AdamW"), ("rigl", "SGD"), ("pruning", "AdamW")]
# The source of layers' names: the model, or the parameters of the inner optimizer.
NAMED_BY = ["model", "inner"]


def wrap(module: nn.Module, method: str, name: str, named_by: str) -> SparseOptimizer:
    """An optimizer for the model, be it wrapped in DistributedDataParallel or not."""
    if named_by == "model":
        model, inner = module, build(name, module.parameters(), **steady(name))
    else:
        model, inner = None, build(name, module.named_parameters(), **steady(name))
    return SparseOptimizer(inner, model, method=method, seed=7, **SETTINGS)


def steady(name: str) -> dict[str, float]:
    """With its default epsilon Adam takes a full step where a gradient is zero up to rounding."""
    return {"eps": 1e-3} if name == "AdamW" else {}


def train_joined(model: nn.Module, optimizer: SparseOptimizer, start: int, stop: int) -> None:
    """Train in one process, on the joined batches of both ranks."""
    for t in range(start + 1, stop + 1):
        batches = [batch(batch_number(rank, t)) for rank in range(RANKS)]
        x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def train_ranks(model: nn.Module, optimizer: SparseOptimizer, start: int, stop: int) -> None:
    """Train as one of two ranks, on its own batches."""
    for t in range(start + 1, stop + 1):
        optimizer.zero_grad()
        loss_of(model, batch_number(dist.get_rank(), t)).backward()
        optimizer.step()


def outcome(model: nn.Module, optimizer: SparseOptimizer) -> dict[str, Any]:
    """Everything that a checkpoint has to restore."""
    return {
        "weights": weights_of(model),
        "masks": masks_of(optimizer),
        "history": [vars(record) for record in optimizer.history],
        "steps": optimizer.steps,
        "state": {
            f"{layer.name} {key}": torch.from_numpy(value)
            for layer in optimizer.layers
            for key, value in per_weight_state(optimizer, layer.weight, layer.mask).items()
        },
    }


def save_on_ranks(method: str, name: str, named_by: str, path: str) -> dict[str, Any]:
    """Train on ranks, save half-way as users do, continue; return both results."""
    torch.manual_seed(dist.get_rank())
    model = make(seed=dist.get_rank())
    parallel = DistributedDataParallel(model)
    optimizer = wrap(parallel, method, name, named_by)
    train_ranks(parallel, optimizer, 0, STOP)
    if dist.get_rank() == 0:
        saved = {"model": parallel.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(saved, path)
    midway = outcome(model, optimizer)
    train_ranks(parallel, optimizer, STOP, STEPS)
    return {"midway": midway, "end": outcome(model, optimizer)}


def load_on_ranks(method: str, name: str, named_by: str, path: str) -> dict[str, Any]:
    """Load on ranks what one process saved, and continue."""
    torch.manual_seed(10 + dist.get_rank())
    model = make(seed=10 + dist.get_rank())
    parallel = DistributedDataParallel(model)
    optimizer = wrap(parallel, method, name, named_by)
    saved = torch.load(Path(path))
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    midway = outcome(model, optimizer)
    train_ranks(parallel, optimizer, STOP, STEPS)
    return {"midway": midway, "end": outcome(model, optimizer)}
