"""One rank of a run in which some ranks load a checkpoint, and others do not."""

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from sparseopt import RankMismatchError, SparseOptimizer
from tests.distributed.ddp_worker import batch_number, masks_of, weights_of
from tests.support.catalogue import build
from tests.support.nets import loss_of, make

STOP = 6
SETTINGS = {"density": 0.2, "total_steps": 40, "delta_t": 3}


def first_step_after_loading(
    ranks: tuple[int, ...], *, together: bool = True, with_closure: bool = False
) -> dict[str, Any]:
    """Load a checkpoint on some ranks, and make the first step.

    Args:
        ranks: the ranks that load.
        together: whether gradients are averaged over the ranks.
        with_closure: whether the step gets a closure.
    """
    rank = dist.get_rank()
    model = make(seed=0)
    optimizer = SparseOptimizer(build("SGD", model.parameters()), model, seed=5, **SETTINGS)
    for t in range(1, STOP + 1):
        optimizer.zero_grad()
        loss_of(model, t).backward()
        optimizer.step()
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))

    model = make(seed=0)
    if rank in ranks:
        model.load_state_dict(saved[0])
    parallel = DistributedDataParallel(model) if together else model
    optimizer = SparseOptimizer(
        build("SGD", model.parameters()), parallel, seed=9, mask="magnitude", **SETTINGS
    )
    if rank in ranks:
        optimizer.load_state_dict(saved[1])
    before = masks_of(optimizer), weights_of(model)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(parallel, batch_number(rank, 1))
        loss.backward()
        return loss

    try:
        if with_closure:
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()
    except RankMismatchError as error:
        after = masks_of(optimizer), weights_of(model)
        moved = [
            name
            for old, new in zip(before, after, strict=True)
            for name in old
            if not torch.equal(old[name], new[name])
        ]
        return {"error": str(error), "moved": moved, "steps": optimizer.steps}
    return {"error": None, "moved": [], "steps": optimizer.steps}
