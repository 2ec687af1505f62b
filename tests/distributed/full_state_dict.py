"""Two ranks load a full optimizer state dict with torch's own functions, and train on."""

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from sparseopt import SparseOptimizer
from tests.distributed.ddp_worker import batch_number
from tests.support.catalogue import build
from tests.support.nets import loss_of, make
from tests.support.wrapping import settings_with

STEPS = 12
SETTINGS = settings_with(total_steps=STEPS, delta_t=4)


def begin(wrapper: str, method: str, seed: int) -> tuple[nn.Module, SparseOptimizer]:
    model = make(seed=seed)
    if wrapper == "fsdp":
        fully_shard(model.fc1)
        model = fully_shard(model)
    else:
        model = DistributedDataParallel(model)
    inner = build("AdamW", model.parameters())
    return model, SparseOptimizer(inner, model, method=method, **{**SETTINGS, "seed": seed})


def train(model: nn.Module, optimizer: SparseOptimizer, start: int, stop: int) -> None:
    for t in range(start + 1, stop + 1):
        optimizer.zero_grad()
        loss_of(model, batch_number(dist.get_rank(), t)).backward()
        optimizer.step()


def full(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return tensor.detach().clone()


def outcome(model: nn.Module, optimizer: SparseOptimizer) -> dict[str, Any]:
    return {
        "weights": {name: full(weight) for name, weight in model.named_parameters()},
        "masks": {name: full(mask) for name, mask in optimizer.masks.items()},
        "history": [vars(record) for record in optimizer.history],
        "steps": optimizer.steps,
    }


def resume(wrapper: str, method: str, stop: int, *, broadcast: bool) -> dict[str, Any]:
    """Save after `stop` steps and train on, in the same objects and in objects that loaded.

    With `broadcast`, only rank 0 has what was saved.
    """
    model, optimizer = begin(wrapper, method, seed=3)
    train(model, optimizer, 0, stop)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=broadcast)
    saved = get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
    # Without copies, some tensors are the model's own.
    weights, state = copy.deepcopy(saved)
    if broadcast and dist.get_rank() != 0:
        weights, state = {}, {}
    fresh_model, fresh = begin(wrapper, method, seed=8)
    set_model_state_dict(fresh_model, weights, options=options)
    set_optimizer_state_dict(fresh_model, fresh, state, options=options)
    loaded = fresh.steps, len(fresh.history)
    for pair in ((model, optimizer), (fresh_model, fresh)):
        train(*pair, stop, STEPS)
    return {
        "loaded": loaded,
        "uninterrupted": outcome(model, optimizer),
        "resumed": outcome(fresh_model, fresh),
    }
