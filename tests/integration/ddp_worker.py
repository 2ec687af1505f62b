"""One rank of a data-parallel run with its own seed and its own data."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from sparseopt import SparseOptimizer
from tests.support.catalogue import build
from tests.support.nets import make
from tests.support.training import dense_gradients, loss_of

STEPS = 16
METHODS = ["static", "set", "rigl", "pruning", "snfs"]
SETTINGS = {"density": 0.2, "total_steps": STEPS, "delta_t": 4}


def batch_number(rank: int, t: int, micro: int = 0) -> int:
    """Data that no other rank and no other step sees."""
    return 1000 * rank + 10 * t + micro


def run(method: str, rank: int, *, seed: int | None, accumulate: int = 1) -> dict:
    """Train, and note what this rank saw at every step."""
    torch.manual_seed(100 + rank)
    model = make(seed=rank)
    parallel = DistributedDataParallel(model)
    optimizer = SparseOptimizer(
        build("SGD", parallel.parameters()), parallel, method=method, seed=seed, **SETTINGS
    )
    seen = {"weights": [], "masks": [], "gradients": [], "local": [], "updating": [], "norm": []}
    for t in range(1, STEPS + 1):
        indices = [batch_number(rank, t, micro) for micro in range(accumulate)]
        local = [dense_gradients(model, index) for index in indices]
        seen["local"].append({n: sum(g[n] for g in local) / accumulate for n in local[0]})
        seen["updating"].append(optimizer.is_update_step)

        optimizer.zero_grad()
        for index in indices[:-1]:
            with parallel.no_sync():
                (loss_of(parallel, index) / accumulate).backward()
        (loss_of(parallel, indices[-1]) / accumulate).backward()

        seen["weights"].append({n: p.detach().clone() for n, p in model.named_parameters()})
        seen["gradients"].append({n: p.grad.clone() for n, p in model.named_parameters()})
        before = {n: p.grad.clone() for n, p in model.named_parameters()}
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e6)
        seen["norm"].append(norm)
        assert all(torch.equal(before[n], p.grad) for n, p in model.named_parameters())
        optimizer.step()
        seen["masks"].append({n: mask.clone() for n, mask in optimizer.masks.items()})
    seen["weights"].append({n: p.detach().clone() for n, p in model.named_parameters()})
    seen["history"] = [vars(record) for record in optimizer.history]
    return seen


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    seen = {method: run(method, rank, seed=None) for method in METHODS}
    seen["seeded"] = run("set", rank, seed=7)
    seen["accumulated"] = run("rigl", rank, seed=7, accumulate=3)
    torch.save(seen, folder / f"rank-{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
