"""One rank of a run under join(), in which rank 1 has fewer batches than rank 0."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.join import Join
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from sparseopt import RankMismatchError, SparseOptimizer
from tests.distributed.ddp_worker import batch_number, masks_of, weights_of
from tests.support.nets import loss_of, make

MOST, DELTA_T = 7, 4
SETTINGS = {"density": 0.2, "total_steps": 40, "delta_t": DELTA_T, "seed": 3}


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, batches: Iterable[int]) -> None:
    for t in batches:
        optimizer.zero_grad()
        loss_of(model, batch_number(dist.get_rank(), t)).backward()
        optimizer.step()


def _refused(act: Callable[[], None], model: nn.Module, optimizer: SparseOptimizer) -> dict:
    """The error of `act`, and which masks and weights differ after it."""
    before = masks_of(optimizer), weights_of(model)
    steps = optimizer.steps
    try:
        act()
    except RankMismatchError as error:
        said = str(error)
    else:
        said = ""
    after = masks_of(optimizer), weights_of(model)
    moved = [
        n for a, b in zip(before, after, strict=True) for n in a if not torch.equal(a[n], b[n])
    ]
    return {"said": said, "moved": moved, "steps": optimizer.steps - steps}


def first_step(passed: str, method: str) -> dict[str, Any]:
    """Join from the first step on; `passed` is the model that the optimizer gets."""
    model = make()
    parallel = DistributedDataParallel(model)
    given = {"wrapped": parallel, "inside": model, "none": None}[passed]
    inner = torch.optim.SGD(model.named_parameters(), lr=0.1)
    optimizer = SparseOptimizer(inner, given, method=method, **SETTINGS)

    def act() -> None:
        with warnings.catch_warnings(), parallel.join():
            _train(parallel, optimizer, range(MOST - 2 * dist.get_rank()))

    return _refused(act, model, optimizer)


def first_step_of_zero() -> dict[str, Any]:
    """Join the inner optimizer, which communicates too, but not the model."""
    model = make()
    parallel = DistributedDataParallel(model)
    inner = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, lr=0.1)
    optimizer = SparseOptimizer(inner, parallel, method="set", **SETTINGS)

    def act() -> None:
        with warnings.catch_warnings(), Join([inner]):
            _train(parallel, optimizer, range(MOST - 2 * dist.get_rank()))

    return _refused(act, model, optimizer)


def later_update() -> dict[str, Any]:
    """Join when the next step is an update, and not before."""
    model = make()
    parallel = DistributedDataParallel(model)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = SparseOptimizer(inner, parallel, method="rigl", **SETTINGS)
    _train(parallel, optimizer, range(DELTA_T - 1))
    assert optimizer.is_update_step

    def act() -> None:
        with warnings.catch_warnings(), parallel.join():
            _train(parallel, optimizer, range(10, 10 + MOST - 2 * dist.get_rank()))

    return _refused(act, model, optimizer)


def _outcome(model: nn.Module, optimizer: SparseOptimizer) -> dict[str, Any]:
    return {
        "weights": weights_of(model),
        "masks": masks_of(optimizer),
        "updates": [record.step for record in optimizer.history],
        "steps": optimizer.steps,
    }


def masks_that_rest(method: str) -> dict[str, Any]:
    """Uneven batches of masks that never move, or that have stopped before."""
    model = make()
    parallel = DistributedDataParallel(model)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {**SETTINGS, "total_steps": None, "t_end": 6}
    optimizer = SparseOptimizer(inner, model, method=method, **settings)
    if method != "static":
        _train(parallel, optimizer, range(6))
    with warnings.catch_warnings(), parallel.join():
        _train(parallel, optimizer, range(10, 10 + MOST - 2 * dist.get_rank()))
    return _outcome(model, optimizer)


def stopped_together() -> dict[str, Any]:
    """Rank 1 runs out of data, and join() stops the other rank too."""
    model = make()
    parallel = DistributedDataParallel(model)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = SparseOptimizer(inner, model, method="set", **SETTINGS)
    said = ""
    try:
        with warnings.catch_warnings(), parallel.join(throw_on_early_termination=True):
            _train(parallel, optimizer, range(MOST - 2 * dist.get_rank()))
    except RuntimeError as error:
        said = str(error)
    return {"said": said, **_outcome(model, optimizer)}
