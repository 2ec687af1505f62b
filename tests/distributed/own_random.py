"""One rank of a run whose method draws random numbers of its own."""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from sparseopt import DropGrow, RankMismatchError, Rewiring, SparseOptimizer
from tests.distributed.ddp_worker import SETTINGS, STEPS, batch_number, masks_of, weights_of
from tests.support.catalogue import build
from tests.support.nets import loss_of, make


@dataclass(frozen=True)
class TorchsNumbers(DropGrow):
    """Grows at random, by torch's global generator."""

    name: ClassVar[str] = "torchs-numbers"

    def grow_scores(self, layer, update):
        return torch.rand_like(layer.weight)


@dataclass(frozen=True)
class AgreedNumbers(DropGrow):
    """Grows at random, by the numbers that are the same on every rank."""

    name: ClassVar[str] = "agreed-numbers"

    def grow_scores(self, layer, update):
        return update.random_scores(layer)


@dataclass(frozen=True)
class TorchsValues(DropGrow):
    """Has the same masks on every rank, and values of its own for the weights that are new."""

    name: ClassVar[str] = "torchs-values"

    def moves(self, layers, update):
        moves = []
        for layer, move in zip(layers, super().moves(layers, update), strict=True):
            mask = layer.mask.reshape(-1)
            live, dropped = mask.nonzero().flatten(), (~mask).nonzero().flatten()
            stays, after = mask.clone(), mask.clone()
            stays[live[: move.drop]] = after[live[: move.drop]] = False
            after[dropped[: move.grow]] = True
            values = torch.randn_like(layer.weight)
            moves.append(Rewiring(move.drop, move.grow, stays, after, values))
        return moves

    def grow_scores(self, layer, update):
        raise AssertionError


METHODS = {one.name: one for one in (TorchsNumbers, AgreedNumbers, TorchsValues)}


def train(method: str, *, same_seed: bool = False, together: bool = True) -> dict[str, Any]:
    """Train until a rank says that the choices differ, and return what it said.

    Both ranks stop after the first update, for the one that does not raise would wait for the other
    in the next backward pass.

    Args:
        method: the method's name.
        same_seed: whether torch has the same seed on both ranks.
        together: whether gradients are averaged over the ranks.
    """
    rank = dist.get_rank()
    model = make(seed=0)
    parallel = DistributedDataParallel(model) if together else model
    optimizer = SparseOptimizer(
        build("SGD", model.parameters()), parallel, method=METHODS[method](), **SETTINGS
    )
    torch.manual_seed(5 if same_seed else rank)
    # Apart from each other, one rank ends before the other one's second update.
    steps = STEPS if together or rank == 0 else STEPS // 2 - 2
    try:
        for t in range(1, steps + 1):
            before = masks_of(optimizer), weights_of(model)
            optimizer.zero_grad()
            loss_of(parallel, batch_number(rank, t)).backward()
            optimizer.step()
            if together and optimizer.history:
                break
    except RankMismatchError as error:
        after = masks_of(optimizer), weights_of(model)
        return {
            "error": str(error),
            "moved": [
                name
                for old, new in zip(before, after, strict=True)
                for name in old
                if not torch.equal(old[name], new[name])
            ],
        }
    finally:
        dist.barrier()
    return {"error": None, "updates": len(optimizer.history), "masks": masks_of(optimizer)}


def train_again_from_a_checkpoint(method: str) -> int:
    """Load an earlier checkpoint, draw other numbers than before, and return the updates.

    The ranks have the same seed, so they draw the same numbers as each other.
    """
    model = make(seed=0)
    optimizer = SparseOptimizer(
        build("SGD", model.parameters()), model, method=METHODS[method](), **SETTINGS
    )
    torch.manual_seed(5)
    saved = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    updates = 0
    for _ in range(2):
        model.load_state_dict(saved[0])
        optimizer.load_state_dict(saved[1])
        while not optimizer.history:
            optimizer.zero_grad()
            loss_of(model, 1).backward()
            optimizer.step()
        updates += len(optimizer.history)
    dist.barrier()
    return updates
