"""One rank of a data-parallel run whose method keeps state: with its own seed and its own data."""

import copy
import json
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from sparseopt import SparseOptimizer
from tests.distributed.ddp_worker import SETTINGS, batch_number, masks_of
from tests.support import own_methods  # noqa: F401 - registers the methods
from tests.support.catalogue import build
from tests.support.nets import make
from tests.support.training import loss_of

STEPS, STOP = 16, 6


def begin(method: str, *, optimizer_first: bool) -> tuple[Any, Any, SparseOptimizer]:
    rank = dist.get_rank()
    torch.manual_seed(100 + rank)
    model = make(seed=rank)
    parallel = None if optimizer_first else DistributedDataParallel(model)
    inner = build("AdamW", model.parameters())
    optimizer = SparseOptimizer(inner, parallel or model, method=method, **SETTINGS)
    return model, parallel or DistributedDataParallel(model), optimizer


def steps(parallel: Any, optimizer: SparseOptimizer, first: int, last: int) -> list[Any]:
    """Train, and return masks and the method's state after every step."""
    seen = []
    for t in range(first, last + 1):
        optimizer.zero_grad()
        loss_of(parallel, batch_number(dist.get_rank(), t)).backward()
        optimizer.step()
        seen.append({"masks": masks_of(optimizer), **kept(optimizer)})
    return seen


def kept(optimizer: SparseOptimizer) -> dict[str, Any]:
    """What the method keeps, as a checkpoint has it."""
    state = optimizer.state_dict()
    return {
        "layers": {
            (index, name): tensor.clone()
            for index, entry in state["state"].items()
            for name, tensor in entry.items()
            if name.startswith("sparse_state.")
        },
        "run": dict(json.loads(state["param_groups"][0]["sparseopt"]["run_state"])),
    }


def train(method: str, *, optimizer_first: bool) -> dict[str, Any]:
    """A full run, and a run that resumes in fresh objects from rank 0's checkpoint half-way."""
    _, parallel, optimizer = begin(method, optimizer_first=optimizer_first)
    at_first = {"masks": masks_of(optimizer), **kept(optimizer)}
    seen = [at_first, *steps(parallel, optimizer, 1, STOP)]
    # A copy, because training changes the tensors in place.
    state = {"model": parallel.module.state_dict(), "optimizer": optimizer.state_dict()}
    saved = [copy.deepcopy(state)]
    dist.broadcast_object_list(saved, src=0)
    seen += steps(parallel, optimizer, STOP + 1, STEPS)

    model, other_parallel, other = begin(method, optimizer_first=optimizer_first)
    model.load_state_dict(saved[0]["model"])
    other.load_state_dict(saved[0]["optimizer"])
    resumed = steps(other_parallel, other, STOP + 1, STEPS)
    return {"seen": seen, "resumed": resumed, "updates": len(other.history)}
