"""What one of two ranks trains, with and without a speed-up."""

import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from sparseopt import speed_up
from tests.speedup.live_training.nets import full_plan, loss_of, make, wrap

STEPS = 12


def train(*, fast, measured=False, accumulate=1):
    """Train, and return this rank's records."""
    rank = dist.get_rank()
    model = make(seed=rank)
    parallel = DistributedDataParallel(model)
    optimizer = wrap(parallel, method="rigl")
    if fast:
        plan = None if measured else full_plan(model, optimizer)
        speed_up(parallel, optimizer, plan=plan)
    seen = {"gradients": [], "masks": [], "updating": [], "losses": []}
    for step in range(STEPS):
        seen["updating"].append(optimizer.is_update_step)
        seen["masks"].append(optimizer.masks)
        optimizer.zero_grad()
        for part in range(accumulate):
            parallel.require_backward_grad_sync = part == accumulate - 1
            loss = loss_of(parallel, 100 * rank + 10 * step + part)
            loss.backward()
        seen["losses"].append(float(loss.detach()))
        seen["gradients"].append(
            {layer.name: layer.weight.grad.clone() for layer in optimizer.layers}
        )
        optimizer.step()
    seen["weights"] = {name: one.detach().clone() for name, one in model.named_parameters()}
    return seen


def refused():
    """The message for a model that is spread over the ranks."""
    model = make()
    fully_shard(model)
    optimizer = wrap(model, method="rigl")
    try:
        speed_up(model, optimizer)
    except ValueError as error:
        return str(error)
    return ""


def sharded_later():
    """Whether a speed-up ends, and training continues, after a framework replaced the weights."""
    model = make()
    optimizer = wrap(model, method="set")
    handle = speed_up(model, optimizer, plan=full_plan(model, optimizer))
    fully_shard(model)
    optimizer.param_groups[0]["params"] = list(model.parameters())
    for index in range(3):
        optimizer.zero_grad()
        loss_of(model, index).backward()
        optimizer.step()
    return {"ended": not handle.is_active, "stem": type(model.stem).__name__}
