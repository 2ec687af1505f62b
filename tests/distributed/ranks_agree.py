"""One rank of a data-parallel run of any kind: what the property test of agreement draws."""

import itertools
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sparseopt import SparseOptimizer
from tests.distributed.ddp_worker import masks_of, weights_of
from tests.support.catalogue import build

SIDE = 3


def network(widths: list[int], *, convolutional: bool, bias: bool) -> nn.Sequential:
    """A stack of linear layers or of convolutions, from the random state as it is."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        if convolutional:
            layers.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias))
        else:
            layers.append(nn.Linear(inputs, outputs, bias=bias))
        layers.append(nn.Tanh())
    return nn.Sequential(*layers)


def inputs(channels: int, seed: int, *, convolutional: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, channels, SIDE, SIDE) if convolutional else (2, channels)
    return torch.randn(shape, generator=generator)


def train(
    net: dict[str, Any],
    name: str,
    settings: dict[str, Any],
    *,
    rank_seeds: tuple[int, int],
    accumulate: int,
    optimizer_first: bool,
    ddp: dict[str, Any],
) -> dict[str, Any]:
    """Train with this rank's own initial weights, seed and data; note every step."""
    rank = dist.get_rank()
    torch.manual_seed(rank_seeds[rank])
    model = network(**net)
    parallel = None if optimizer_first else DistributedDataParallel(model, **ddp)
    optimizer = SparseOptimizer(build(name, model.parameters()), parallel or model, **settings)
    parallel = parallel or DistributedDataParallel(model, **ddp)

    seen: dict[str, Any] = {
        "targets": {layer.name: layer.target for layer in optimizer.layers},
        "masks": [masks_of(optimizer)],
        "weights": [weights_of(model)],
        "updating": [],
    }
    channels, convolutional = net["widths"][0], net["convolutional"]
    for t in range(settings["total_steps"]):
        optimizer.zero_grad()
        for micro in range(accumulate):
            seed = 1000 * rank_seeds[rank] + 10 * t + micro
            x = inputs(channels, seed, convolutional=convolutional)
            with nullcontext() if micro == accumulate - 1 else parallel.no_sync():
                (parallel(x).square().mean() / accumulate).backward()
        seen["updating"].append(optimizer.is_update_step)
        optimizer.step()
        seen["masks"].append(masks_of(optimizer))
        seen["weights"].append(weights_of(model))
    seen["history"] = [vars(record) for record in optimizer.history]
    return seen


def first_steps_with_a_default_device() -> int:
    """Make two steps while new tensors are made on another device; return the count of steps."""
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    optimizer = SparseOptimizer(
        build("SGD", model.parameters()), model, method="set", density=0.2, seed=1
    )
    for _ in range(2):
        model(torch.ones(2, 8)).square().mean().backward()
        with torch.device("meta"):
            optimizer.step()
    return optimizer.steps
