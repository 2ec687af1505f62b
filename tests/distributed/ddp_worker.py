"""One rank of a data-parallel run with its own seed and its own data."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sparseopt import SparseOptimizer
from tests.support.catalogue import build
from tests.support.nets import SPARSE_NAMES, SmallNet, make
from tests.support.training import dense_gradients, loss_of

STEPS = 16
METHODS = ["static", "set", "rigl", "pruning", "snfs", "srigl"]
SETTINGS = {"density": 0.2, "total_steps": STEPS, "delta_t": 4}


class BranchNet(SmallNet):
    """A net that uses its last layer on some batches only, so perhaps on one rank only."""

    def __init__(self):
        super().__init__()
        self.extra = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.relu(self.norm(self.conv1(x)))
        h = F.relu(self.conv2(h))
        h = F.relu(self.fc1(h.flatten(1)))
        return self.fc2(h + self.extra(h) if self.uses_extra(x) else h)

    @staticmethod
    def uses_extra(x: torch.Tensor) -> bool:
        return bool(x[0, 0, 0, 3] > 0)


@dataclass(frozen=True)
class Run:
    """The settings of one run.

    Attributes:
        method: The method.
        optimizer: The inner optimizer.
        state: How its state is kept.
        seed: The seed given, if one is.
        accumulate: Micro-batches a step, all but the last under `no_sync`.
        ddp: Options of DistributedDataParallel.
        optimizer_first: Whether the model is wrapped after the optimizer was made, as frameworks
            do it.
        kind: The model.
    """

    method: str = "rigl"
    optimizer: str = "SGD"
    state: str = "auto"
    seed: int | None = 7
    accumulate: int = 1
    ddp: Mapping[str, Any] = field(default_factory=dict)
    optimizer_first: bool = False
    kind: type[nn.Module] = SmallNet

    @property
    def names(self) -> tuple[str, ...]:
        return SPARSE_NAMES if self.kind is SmallNet else (*SPARSE_NAMES, "extra.weight")


RUNS = {
    **{method: Run(method, seed=None) for method in METHODS},
    "seeded": Run("set"),
    "AdamW": Run("set", "AdamW"),
    "AdamW, masked state": Run("rigl", "AdamW", state="masked"),
    "accumulated": Run(accumulate=3),
    "bucket views": Run(optimizer="AdamW", ddp={"gradient_as_bucket_view": True}),
    "bucket views, accumulated": Run(
        "set", "AdamW", accumulate=2, ddp={"gradient_as_bucket_view": True}
    ),
    "static graph": Run(optimizer="AdamW", ddp={"static_graph": True}),
    "unused parameters": Run(
        optimizer="AdamW", ddp={"find_unused_parameters": True}, kind=BranchNet
    ),
    "unused parameters, pruning": Run(
        "pruning", ddp={"find_unused_parameters": True}, kind=BranchNet
    ),
    "optimizer first": Run("rigl", "AdamW", optimizer_first=True),
}


def batch_number(rank: int, t: int, micro: int = 0) -> int:
    """Data that no other rank and no other step sees."""
    return 1000 * rank + 10 * t + micro


def begin(run: Run, rank: int) -> tuple[nn.Module, DistributedDataParallel, SparseOptimizer]:
    """The model, the wrapped model and the optimizer; every rank's weights and seed differ."""
    torch.manual_seed(100 + rank)
    model = make(run.kind, seed=rank)
    parallel = None if run.optimizer_first else DistributedDataParallel(model, **run.ddp)
    optimizer = SparseOptimizer(
        build(run.optimizer, model.parameters()),
        parallel or model,
        method=run.method,
        seed=run.seed,
        state=run.state,
        **SETTINGS,
    )
    return model, parallel or DistributedDataParallel(model, **run.ddp), optimizer


def backward(parallel: DistributedDataParallel, indices: list[int]) -> None:
    """Gradients of the mean over the micro-batches `indices`, reduced with the last of them."""
    for index in indices:
        with nullcontext() if index == indices[-1] else parallel.no_sync():
            (loss_of(parallel, index) / len(indices)).backward()


def train(run: Run) -> dict[str, Any]:
    """Train, and record this rank's values at every step."""
    rank = dist.get_rank()
    model, parallel, optimizer = begin(run, rank)
    seen: dict[str, Any] = {
        "weights": [weights_of(model)],
        "masks": [masks_of(optimizer)],
        "gradients": [],
        "local": [],
        "updating": [],
        "norm": [],
    }
    for t in range(1, STEPS + 1):
        indices = [batch_number(rank, t, micro) for micro in range(run.accumulate)]
        seen["local"].append(local_mean(model, indices))
        seen["updating"].append(optimizer.is_update_step)
        optimizer.zero_grad()
        backward(parallel, indices)
        seen["gradients"].append(gradients_of(model))
        seen["norm"].append(nn.utils.clip_grad_norm_(model.parameters(), 1e6))
        optimizer.step()
        seen["weights"].append(weights_of(model))
        seen["masks"].append(masks_of(optimizer))
    seen["history"] = [vars(record) for record in optimizer.history]
    return seen


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def masks_of(optimizer: SparseOptimizer) -> dict[str, torch.Tensor]:
    return {name: mask.clone() for name, mask in optimizer.masks.items()}


def gradients_of(model: nn.Module) -> dict[str, torch.Tensor | None]:
    """A copy of every gradient, or None."""
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return {name: None if g is None else g.clone() for name, g in gradients.items()}


def local_mean(model: nn.Module, indices: list[int]) -> dict[str, torch.Tensor]:
    """This rank's dense gradients, from a copy of the model without hooks."""
    total: dict[str, torch.Tensor] = {}
    for index in indices:
        for name, gradient in dense_gradients(model, index).items():
            if gradient is not None:
                total[name] = total.get(name, 0) + gradient / len(indices)
    return total
