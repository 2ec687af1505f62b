"""One rank of runs in which another optimizer wraps ours inside, or the model is sharded."""

import copy
import warnings
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.distributed.optim import PostLocalSGDOptimizer, ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from sparseopt import SparseOptimizer
from tests.distributed.ddp_worker import masks_of, weights_of
from tests.support.nets import loss_of, make

SETTINGS = {"density": 0.2, "total_steps": 40, "delta_t": 4, "seed": 3, "state": "masked"}


def _adam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=0.01)


def _zero(params: Any) -> torch.optim.Optimizer:
    return ZeroRedundancyOptimizer(params, optimizer_class=torch.optim.Adam, lr=0.01)


def _train(model: nn.Module, optimizer: SparseOptimizer, start: int, steps: int) -> None:
    for t in range(start, start + steps):
        optimizer.zero_grad()
        loss_of(model, 2 * t + dist.get_rank()).backward()
        optimizer.step()


def zero_redundancy(method: str, steps: int, more: int) -> dict[str, Any]:
    """Weights after `steps + more` steps of plain Adam, of ZeRO, and of ZeRO resumed in between."""

    def build(make_inner: Any, seed: int) -> tuple[nn.Module, SparseOptimizer]:
        model = DistributedDataParallel(make(seed=seed))
        inner = make_inner(model.parameters())
        return model, SparseOptimizer(inner, model, method=method, **SETTINGS)

    model, optimizer = build(_adam, 0)
    _train(model, optimizer, 0, steps + more)
    seen = {"adam": weights_of(model.module)}

    model, optimizer = build(_zero, 0)
    _train(model, optimizer, 0, steps)
    inner: Any = optimizer.inner
    seen["fresh"] = [_dropped_state_is_zero(optimizer)]
    for rank in range(dist.get_world_size()):
        inner.consolidate_state_dict(to=rank)
        if rank == dist.get_rank():
            saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    _train(model, optimizer, steps, more)
    seen["zero"] = weights_of(model.module)

    model, optimizer = build(_zero, 1)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    _train(model, optimizer, steps, more)
    seen["fresh"].append(_dropped_state_is_zero(optimizer))
    return {**seen, "resumed": weights_of(model.module), "masks": masks_of(optimizer)}


def _dropped_state_is_zero(optimizer: SparseOptimizer) -> bool:
    local: Any = optimizer.inner
    return all(
        not local.optim.state[layer.weight][name][~layer.mask].any()
        for layer in optimizer.layers
        if layer.weight in local.optim.state
        for name in ("exp_avg", "exp_avg_sq")
    )


def zero_beside_plain(name: str, options: dict[str, Any], steps: int) -> dict[str, Any]:
    """Weights of a plain optimizer of torch, and of ZeRO around this optimizer."""
    seen = {}
    for by_zero in (False, True):
        kind = getattr(torch.optim, name)
        model = DistributedDataParallel(make())
        params = model.parameters()
        inner = (
            ZeroRedundancyOptimizer(params, optimizer_class=kind, **options)
            if by_zero
            else kind(params, **options)
        )
        optimizer = SparseOptimizer(inner, model, method="set", **SETTINGS)
        _train(model, optimizer, 0, steps)
        seen["zero" if by_zero else "plain"] = weights_of(model.module)
    return seen


def zero_with_live_state() -> str:
    """The error for live state of an optimizer inside ZeRO that factorises matrices."""
    model = DistributedDataParallel(make())
    inner = ZeroRedundancyOptimizer(
        model.parameters(), optimizer_class=torch.optim.Adafactor, lr=0.01
    )
    try:
        SparseOptimizer(inner, model, method="static", **{**SETTINGS, "state": "live"})
    except ValueError as error:
        return str(error)
    return ""


def zero_without_consolidation() -> str:
    """The error of saving on a rank without the consolidated state."""
    model = DistributedDataParallel(make())
    optimizer = SparseOptimizer(_zero(model.parameters()), model, method="static", **SETTINGS)
    _train(model, optimizer, 0, 2)
    try:
        optimizer.state_dict()
    except RuntimeError as error:
        return str(error)
    return ""


def zero_that_overlaps() -> str:
    """The error for ZeRO that steps inside the hooks of DistributedDataParallel."""
    model = DistributedDataParallel(make())
    inner = ZeroRedundancyOptimizer(
        model.parameters(), optimizer_class=torch.optim.Adam, overlap_with_ddp=True, lr=0.01
    )
    try:
        SparseOptimizer(inner, model, method="static", **SETTINGS)
    except TypeError as error:
        return str(error)
    return ""


def post_local_sgd(method: str, steps: int) -> dict[str, Any]:
    """Train with an average over ranks every four steps, by PyTorch and by hand."""
    runs = []
    said = []
    for by_hand in (False, True):
        model = make()
        inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        averager = PeriodicModelAverager(period=4)
        wrapped = inner if by_hand else PostLocalSGDOptimizer(inner, averager)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer = SparseOptimizer(wrapped, model, method=method, **SETTINGS)
        said += [str(warning.message) for warning in caught]
        for t in range(steps):
            _train(model, optimizer, t, 1)
            if by_hand:
                averager.average_parameters(optimizer.param_groups)
        runs.append(weights_of(model))
    return {"run": runs[0], "by hand": runs[1], "masks": masks_of(optimizer), "said": said}


def first_fsdp(when: str, use_orig_params: bool) -> str:
    """The errors for a model that FSDP1 shards before or after wrapping."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    def shard(model: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(
            model, use_orig_params=use_orig_params, device_id=torch.device("cpu")
        )

    plain = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = plain if when == "after" else shard(plain)
        given = None if when == "without model" else model
        try:
            inner = torch.optim.SGD(model.parameters(), lr=0.1)
            optimizer = SparseOptimizer(inner, given, method="static", density=0.2, seed=1)
            if when == "after":
                model = shard(plain)
                model(torch.randn(8, 64)).square().mean().backward()
                optimizer.step()
        except TypeError as error:
            return str(error)
    return " ".join(str(warning.message) for warning in said)
